package router

import (
	"io"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Ask sends a request of the proxy's own to a cluster and reads the answer to its end,
// at most limit bytes. x.Request, x.Conn and x.Context are set. When it returns,
// x.Response is the answer's head; it reports false if there is none, or not all of
// it came.
func (r *Router) Ask(x *exchange.Exchange, cluster string, timeout time.Duration, limit int) (body []byte, ok bool) {
	to := r.cfg.Clusters.Cluster(cluster)
	if to == nil {
		return nil, false
	}
	var last any
	x.Client, x.Terminal, x.Cluster, x.Start = noClient{}, &last, cluster, r.cfg.Now()
	rule := plan.Route{Timeout: timeout}
	c := newCall()
	c.begin(r, x, to, &rule, nil)
	x.OnFinish(c)
	c.run(nil)
	ok = !x.Response.Local && x.Tunnel == nil
	for b := x.Response.Body; b != nil && ok; {
		p, err := b.Next()
		if err == io.EOF {
			break
		}
		if ok = err == nil && len(body)+len(p) <= limit; ok {
			body = append(body, p...)
		}
	}
	return body, ok
}
