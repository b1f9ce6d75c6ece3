package validate

import (
	"fmt"
	"maps"
	"slices"

	telemetryv1alpha1 "istio.io/api/telemetry/v1alpha1"
)

func (c *checker) telemetry(t *telemetryv1alpha1.Telemetry) {
	c.targets(t.Selector, t.TargetRef, t.TargetRefs)
	for i, m := range t.Metrics {
		path := at("spec.metrics", i)
		c.providers(path, m.Providers)
		for j, o := range m.Overrides {
			c.override(at(path+".overrides", j), o)
		}
		c.duration(path+".reportingInterval", m.ReportingInterval)
	}
	if len(t.Tracing) > 1 {
		c.warn("spec.tracing", "only the first element acts", "")
	}
	for i, tr := range t.Tracing {
		c.tracing(at("spec.tracing", i), tr)
	}
	for i, l := range t.AccessLogging {
		path := at("spec.accessLogging", i)
		c.providers(path, l.Providers)
		if f := path + ".filter.expression"; l.Filter != nil && l.Filter.Expression == "" {
			c.notEmpty(f, "")
		}
	}
}

func (c *checker) providers(path string, ps []*telemetryv1alpha1.ProviderRef) {
	for i, p := range ps {
		if p.Name == "" {
			c.err(at(path+".providers", i)+".name", "missing", "name an extensionProvider of the mesh's configuration")
		}
	}
}

func (c *checker) override(path string, o *telemetryv1alpha1.MetricsOverrides) {
	for _, tag := range slices.Sorted(maps.Keys(o.TagOverrides)) {
		field := key(path+".tagOverrides", tag)
		t := o.TagOverrides[tag]
		if tag == "" {
			c.warn(field, "a tag without name", "")
		}
		switch upsert := t.Operation == telemetryv1alpha1.MetricsOverrides_TagOverride_UPSERT; {
		case upsert && t.Value == "":
			c.err(field+".value", "missing", "operation UPSERT sets the tag to an expression")
		case !upsert && t.Value != "":
			c.err(field+".value", "operation REMOVE sets nothing", "remove the value, or use UPSERT")
		}
	}
	if m, ok := o.GetMatch().GetMetricMatch().(*telemetryv1alpha1.MetricSelector_CustomMetric); ok && m.CustomMetric == "" {
		c.err(path+".match.customMetric", "empty", "name a metric")
	}
}

func (c *checker) tracing(path string, t *telemetryv1alpha1.Tracing) {
	c.providers(path, t.Providers)
	if len(t.Providers) > 1 {
		c.warn(path+".providers", "only the first provider acts", "")
	}
	if v := t.RandomSamplingPercentage.GetValue(); v < 0 || v > 100 {
		c.err(path+".randomSamplingPercentage", fmt.Sprintf("%v is no percentage", v), "it goes from 0 to 100")
	}
	for _, name := range slices.Sorted(maps.Keys(t.CustomTags)) {
		field := key(path+".customTags", name)
		if name == "" {
			c.err(field, "a tag without name", "")
		}
		tag := t.CustomTags[name]
		switch v := tag.Type.(type) {
		case *telemetryv1alpha1.Tracing_CustomTag_Literal:
			if v.Literal.GetValue() == "" {
				c.err(field+".literal.value", "missing", "")
			}
		case *telemetryv1alpha1.Tracing_CustomTag_Header:
			if v.Header.GetName() == "" {
				c.err(field+".header.name", "missing", "")
			}
		case *telemetryv1alpha1.Tracing_CustomTag_Environment:
			if v.Environment.GetName() == "" {
				c.err(field+".environment.name", "missing", "")
			}
		case nil:
			c.err(field, "the tag has no value", "give literal, header or environment")
		}
	}
}
