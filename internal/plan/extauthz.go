package plan

import (
	"errors"
	"strings"
	"time"
)

// ExtAuthz asks a server about the requests that one of Rules matches, before they
// go on: one that answers 200 lets them pass.
type ExtAuthz struct {
	// Rules begin with ExtAuthzPrefix, a provider's name and "-".
	Provider string
	Rules    []*RBACRule
	// Cluster is where the server is. It is asked for PathPrefix and the request's
	// path behind it, within Timeout.
	Cluster    string
	PathPrefix string
	Timeout    time.Duration
	// FailOpen lets requests pass while the server can not be asked. Without it they
	// are answered with StatusOnError.
	FailOpen      bool
	StatusOnError uint32
	// RequestHeaders are told to the server beside method, host and authorization, and
	// Added are as well.
	RequestHeaders []TextMatch
	Added          []AddedHeader
	// ToUpstream are headers of a consent that the request is given, ToClient those
	// that its response is. ToDenied are those of a refusal that the client gets; none
	// stands for all.
	ToUpstream, ToClient, ToDenied []TextMatch
}

// AddedHeader is a header with its value.
type AddedHeader struct{ Name, Value string }

// ExtAuthzPrefix begins the names of rules that choose what a provider is asked about.
// Source: Istio.
const ExtAuthzPrefix = "istio-ext-authz-"

// String returns what is asked, and whom.
func (e *ExtAuthz) String() string {
	w := words{"ask", e.Provider, e.Cluster}
	w.addIf(e.PathPrefix != "", "path=%s", e.PathPrefix)
	w.add("timeout=%s", e.Timeout)
	w.addIf(e.FailOpen, "fail-open")
	w.addIf(!e.FailOpen, "on-error=%d", e.StatusOnError)
	names := func(what string, list []TextMatch) {
		w.addIf(len(list) > 0, "%s=%s", what, joined(list, func(t TextMatch) string { return strings.TrimPrefix(comparison(t.Kind, t.Value), "=") }))
	}
	names("send", e.RequestHeaders)
	for _, a := range e.Added {
		w.add("add=%s:%s", a.Name, a.Value)
	}
	names("upstream", e.ToUpstream)
	names("client", e.ToClient)
	names("denied", e.ToDenied)
	return w.String()
}

// Validate checks what a proxy relies on.
func (e *ExtAuthz) Validate() error {
	var errs []error
	if e.Cluster == "" {
		errs = append(errs, errors.New("a provider of authorization has no cluster"))
	}
	if e.Timeout <= 0 {
		errs = append(errs, errors.New("a provider of authorization has no timeout"))
	}
	if !e.FailOpen && (e.StatusOnError < 200 || e.StatusOnError > 599) {
		errs = append(errs, errors.New("a provider of authorization has no status for errors"))
	}
	return errors.Join(append(errs, (&RBAC{Action: Deny, Enforced: true, Rules: e.Rules}).Validate())...)
}
