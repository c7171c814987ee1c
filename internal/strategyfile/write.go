package strategyfile

import (
	"bytes"
	"fmt"

	"routerd.dev/internal/rollout"
	"routerd.dev/internal/yamlfile"
)

// Format writes a strategy as a file that Read reads back as the same, if
// Validate finds no problem with it. What no file can say, text that is not
// UTF-8 or a number that is none, becomes a comment with the reason.
func Format(s rollout.Strategy) []byte {
	n, err := yamlfile.NodeOf(document{APIVersion: APIVersion, Strategy: s.Name, plan: s})
	if err != nil {
		return comment(s, err)
	}
	b, err := yamlfile.Encode(unshape(n, documentType))
	if err != nil {
		return comment(s, err)
	}
	return b
}

func comment(s rollout.Strategy, err error) []byte {
	text := fmt.Sprintf("strategy %q cannot be written: %v", s.Name, err)
	return append([]byte("# "), append(bytes.ReplaceAll([]byte(text), []byte("\n"), []byte("\n# ")), '\n')...)
}
