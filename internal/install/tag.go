package install

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/manifests"
)

// Tag makes the webhook by which a namespace's label istio.io/rev=TAG means a
// revision, so that moving a tag moves namespaces to another control plane.
// Tag "default" takes istio-injection=enabled, too.
func Tag(tag, revision, namespace string, byDefault bool) (Object, error) {
	if revision == "default" {
		revision = ""
	}
	sub, err := fs.Sub(manifests.Files, "charts/istiod")
	if err != nil {
		return nil, err
	}
	chart, err := LoadChart(sub)
	if err != nil {
		return nil, err
	}
	text, err := chart.Render(Release{Name: "istiod", Namespace: namespace}, map[string]any{
		"revision": revision, "revisionTags": []any{tag},
		"sidecarInjectorWebhook": map[string]any{"enableNamespacesByDefault": byDefault},
	})
	if err != nil {
		return nil, err
	}
	objects, err := ReadObjects(text)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(objects, func(o Object) bool { return o.Labels()[tagLabel] == tag })
	if i < 0 {
		return nil, fmt.Errorf("tag %q: the chart makes no webhook for it", tag)
	}
	objects[i].SetLabel(ownerLabel, "heddle")
	return objects[i], nil
}

// Tags lists the tags that are set.
func (i *Installer) Tags(ctx context.Context) ([]Object, error) {
	return i.Cluster.List(ctx, "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "", tagLabel)
}

// TagInfo is a tag as people read it.
type TagInfo struct {
	Tag        string   `json:"tag"`
	Revision   string   `json:"revision"`
	Namespaces []string `json:"namespaces"`
}

// DescribeTags says what each tag means, and which namespaces follow it.
func (i *Installer) DescribeTags(ctx context.Context) ([]TagInfo, error) {
	tags, err := i.Tags(ctx)
	if err != nil {
		return nil, err
	}
	namespaces, err := i.Cluster.List(ctx, "v1", "Namespace", "", "")
	if err != nil {
		return nil, err
	}
	out := []TagInfo{}
	for _, t := range tags {
		info := TagInfo{Tag: t.Labels()[tagLabel], Revision: t.Labels()[revisionLabel], Namespaces: []string{}}
		for _, ns := range namespaces {
			l := ns.Labels()
			if l[revisionLabel] == info.Tag && l["istio-injection"] == "" || info.Tag == "default" && l["istio-injection"] == "enabled" {
				info.Namespaces = append(info.Namespaces, ns.Name())
			}
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b TagInfo) int { return strings.Compare(a.Tag, b.Tag) })
	return out, nil
}
