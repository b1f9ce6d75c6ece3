package cli

import (
	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/lab"
)

func newLogs(s Streams) *cobra.Command {
	var m mesh
	var r lab.LogRequest
	c := &cobra.Command{
		Use:     "logs POD",
		GroupID: "mesh",
		Short:   "Print what a container of a pod has printed",
		Long: "Prints the output of a pod's main container, or of the one that -c names. POD is a name, or\n" +
			"deployment/NAME for one of its pods. The output of earlier runs stands before that of the last.",
		Example: "  heddle logs reviews-v1-0\n  heddle logs deployment/reviews-v1 -c istio-proxy -f --tail 10",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := m.client()
			if err != nil {
				return err
			}
			ctx, stop := withInterrupt(c)
			defer stop()
			r.Pod = args[0]
			return client.Logs(ctx, r, s.Out)
		},
		ValidArgsFunction: m.completePods(&r.Namespace),
	}
	m.flags(c)
	c.Flags().StringVarP(&r.Namespace, "namespace", "n", "", "namespace of the pod, if the name is not unique")
	c.Flags().StringVarP(&r.Container, "container", "c", "", "container (default the first that is no proxy)")
	c.Flags().BoolVarP(&r.Follow, "follow", "f", false, "go on printing as more comes")
	c.Flags().IntVar(&r.Tail, "tail", -1, "print so many last lines only")
	return c
}
