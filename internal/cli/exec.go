package cli

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/lab"
)

func newExec(s Streams) *cobra.Command {
	var m mesh
	var r lab.ExecRequest
	var stdin, tty bool
	c := &cobra.Command{
		Use:     "exec POD [-c CONTAINER] -- COMMAND [ARGS...]",
		GroupID: "mesh",
		Short:   "Run a command in a pod",
		Long: "Runs a program of this machine with the network, files, environment and user of a pod's\n" +
			"container. Standard input, output and error are the caller's, and so is the exit status.\n" +
			"POD is a name, or deployment/NAME for one of its pods.",
		Example: "  heddle exec productpage-v1-0 -- curl -s http://details:9080/details/0\n  heddle exec -it deployment/reviews-v1 -- sh",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return fmt.Errorf("name a pod and a command: %s", c.Use)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			client, err := m.client()
			if err != nil {
				return err
			}
			r.Pod, r.Command = args[0], args[1:]
			r.Env = []string{"TERM=" + os.Getenv("TERM")}
			in, out, errs := s.In, s.Out, s.Err
			if !stdin {
				null, err := os.Open(os.DevNull)
				if err != nil {
					return err
				}
				defer null.Close()
				in = null
			}
			if tty {
				t, err := openTerminal(s.In, s.Out)
				if err != nil {
					return err
				}
				defer t.close()
				in, out, errs = t.inner, t.inner, t.inner
				r.Terminal = true
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
			defer signal.Stop(signals)
			status, err := client.Exec(c.Context(), r, in, out, errs, signals)
			if err != nil {
				fmt.Fprintf(s.Err, "heddle: %v\r\n", err)
				return exitError{status}
			}
			if status != 0 {
				if !tty {
					fmt.Fprintf(s.Err, "command terminated with exit code %d\n", status)
				}
				return exitError{status}
			}
			return nil
		},
		ValidArgsFunction: m.completePods(&r.Namespace),
	}
	m.flags(c)
	c.Flags().StringVarP(&r.Namespace, "namespace", "n", "", "namespace of the pod, if the name is not unique")
	c.Flags().StringVarP(&r.Container, "container", "c", "", "container (default the first that is no proxy)")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input to the command")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	c.Flags().SetInterspersed(true)
	return c
}
