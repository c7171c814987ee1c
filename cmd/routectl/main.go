// Command routectl publishes, explains, switches and rolls back the routes of
// a routerd fleet.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"routerd.dev/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := cli.Run(ctx, cli.OS(), os.Args[1:])
	stop()
	os.Exit(code)
}
