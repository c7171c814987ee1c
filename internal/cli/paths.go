package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// takeFiles gives a command the flag -f PATH…. The words behind it are paths,
// too: a shell makes many of -f routes/*.yaml, and the flag itself takes the
// first. They are the command's arguments.
func takeFiles(cmd *cobra.Command, files *[]string, help string) {
	cmd.Flags().StringArrayVarP(files, "file", "f", nil, help)
	_ = cmd.RegisterFlagCompletionFunc("file", completeFiles)
	cmd.ValidArgsFunction = behindFiles(files, cobra.NoFileCompletions)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 && len(*files) == 0 {
			return fail(ExitUsage, fmt.Errorf("%s takes files by -f", cmd.CommandPath()), "usage: "+cmd.UseLine())
		}
		return nil
	}
}

// behindFiles completes files where -f was given, and else what otherwise does.
func behindFiles(files *[]string, otherwise completion) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(*files) > 0 {
			return completeFiles(cmd, args, word)
		}
		return otherwise(cmd, args, word)
	}
}

// completeFiles lets the shell offer what may be a route or strategy file, and folders.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt
}

// namesRevision tells whether a word is one of those that revision reads.
func namesRevision(word string) bool {
	switch word {
	case "target", "committed", "head":
		return true
	}
	_, err := strconv.ParseInt(strings.TrimPrefix(word, "r"), 10, 64)
	return err == nil
}
