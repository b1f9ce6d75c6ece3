// Package cli is the command heddle: one file for each subcommand. Commands are
// made by functions and share nothing but what they are given, so that tests
// run them as users type them.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/lab"
)

// Streams are the three standard ones. They are files because commands in pods
// get them as they are.
type Streams struct{ In, Out, Err *os.File }

// exitError ends the program with a status and no further word.
type exitError struct{ status int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// Run runs heddle with the arguments and returns its exit status.
func Run(ctx context.Context, args []string, s Streams) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.status
	case errors.Is(err, lab.ErrSaid):
		return 1
	}
	fmt.Fprintf(s.Err, "heddle: %v\n", err)
	return 1
}

func newRoot(s Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "heddle",
		Short: "A service mesh that reads Istio's API",
		Long: "Heddle is a service mesh with Istio's API, in Go. `heddle up` runs manifests on this\n" +
			"machine, without Kubernetes and without containers; the other commands look into it.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, c.CommandPath())
	})
	root.AddGroup(
		&cobra.Group{ID: "mesh", Title: "The mesh on this machine:"},
		&cobra.Group{ID: "look", Title: "Looking into proxies:"},
		&cobra.Group{ID: "config", Title: "Configuration:"},
		&cobra.Group{ID: "cluster", Title: "The mesh in Kubernetes:"},
	)
	root.AddCommand(
		newUp(s), newNode(), newPs(s), newGet(s), newLogs(s), newExec(s),
		newProxyStatus(s), newProxyConfig(s),
		newValidate(s), newVersion(s),
		newInstall(s), newUpgrade(s), newUninstall(s), newVerifyInstall(s), newManifest(s), newTag(s), newKubeInject(s), newExperimental(s),
	)
	return root
}

// mesh is the choice of a mesh by flags.
type mesh struct{ name, stateDir string }

func (m *mesh) flags(c *cobra.Command) {
	c.Flags().StringVar(&m.name, "name", "", "name of the mesh; needed if several run")
	c.Flags().StringVar(&m.stateDir, "state-dir", "", "directory with the mesh's state, if it is not the usual one")
	_ = c.RegisterFlagCompletionFunc("name", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return lab.Running(), cobra.ShellCompDirectiveNoFileComp
	}) // fails only for a flag that does not exist
}

// dir returns the state directory of the chosen mesh: the only one that runs if
// none is named.
func (m *mesh) dir() (string, error) {
	if m.stateDir != "" {
		return m.stateDir, nil
	}
	name := m.name
	if name == "" {
		name = lab.DefaultName
		if running := lab.Running(); len(running) == 1 {
			name = running[0]
		} else if len(running) > 1 {
			return "", fmt.Errorf("several meshes run: choose one with --name, of %v", running)
		}
	}
	if err := lab.CheckName(name); err != nil {
		return "", err
	}
	return lab.StateDir(name)
}

func (m *mesh) client() (*lab.Client, error) {
	dir, err := m.dir()
	if err != nil {
		return nil, err
	}
	return lab.NewClient(dir), nil
}

// completePods offers the names of pods as the first argument.
func (m *mesh) completePods(namespace *string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		client, err := m.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		pods, err := client.Pods(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, p := range pods {
			if *namespace == "" || p.Namespace == *namespace {
				names = append(names, p.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
