package cli

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/lab"
)

func newUp(s Streams) *cobra.Command {
	var name, stateDir string
	c := &cobra.Command{
		Use:     "up PATH...",
		GroupID: "mesh",
		Short:   "Run manifests as a mesh on this machine until Ctrl-C",
		Long: "Runs the Deployments and Pods of ordinary manifests as processes, each pod in a network\n" +
			"namespace of its own, with sidecars, gateways and a control plane. Images are ignored:\n" +
			"a container's command must be a program of this machine.\n\n" +
			"Changes of the files apply at once. Services of type LoadBalancer are published on\n" +
			"127.0.0.1, ports below 1024 at 8000 more. Ctrl-C ends everything and leaves nothing\n" +
			"behind but the state directory.",
		Example: "  heddle up examples/bookstore\n  heddle up --name test manifests/ extra.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, paths []string) error {
			dir := stateDir
			if dir == "" {
				if err := lab.CheckName(name); err != nil {
					return err
				}
				var err error
				if dir, err = lab.StateDir(name); err != nil {
					return err
				}
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			return lab.Up(ctx, lab.Config{Name: name, Paths: paths, StateDir: dir, Stdout: s.Out, Stderr: s.Err})
		},
	}
	c.Flags().StringVar(&name, "name", lab.DefaultName, "name of the mesh; meshes with different names run side by side")
	c.Flags().StringVar(&stateDir, "state-dir", "", "directory for the mesh's state (default $XDG_STATE_HOME/heddle/NAME, or ~/.local/state/heddle/NAME)")
	return c
}

// newNode is what `heddle up` starts inside.
func newNode() *cobra.Command {
	return &cobra.Command{
		Use:                lab.NodeCommand,
		Hidden:             true,
		Args:               cobra.ExactArgs(1),
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return lab.Node(args[0]) },
	}
}

// withInterrupt returns a context that Ctrl-C ends.
func withInterrupt(c *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
}
