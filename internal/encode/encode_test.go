package encode

import (
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// TestFingerprintSeesEveryField changes each field of each type of the plan in
// turn: one that the fingerprint missed would let two different resources share
// their bytes.
func TestFingerprintSeesEveryField(t *testing.T) {
	for _, root := range []any{&plan.Listener{}, &plan.RouteConfig{}, &plan.Cluster{}, &plan.NameTable{}, &plan.LoadAssignment{}} {
		v := reflect.ValueOf(root)
		populate(v.Elem())
		seen := map[fingerprint]string{fingerprintOf("t", false, root): "nothing"}
		mutate(v.Elem(), v.Elem().Type().Name(), func(path string) {
			f := fingerprintOf("t", false, root)
			if other, ok := seen[f]; ok {
				t.Errorf("a change of %s has the fingerprint of a change of %s", path, other)
			}
			seen[f] = path
		})
		if fingerprintOf("u", false, root) == fingerprintOf("t", false, root) || fingerprintOf("t", true, root) == fingerprintOf("t", false, root) {
			t.Error("type or purpose are not part of the fingerprint")
		}
	}
}

// populate gives every slice one element and every pointer a value.
func populate(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		populate(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		populate(v.Index(0))
	case reflect.Struct:
		if !network(v) {
			for i := range v.NumField() {
				populate(v.Field(i))
			}
		}
	}
}

// mutate changes one leaf after the other, calls changed, and changes it back.
func mutate(v reflect.Value, path string, changed func(path string)) {
	try := func(to reflect.Value) {
		was := reflect.New(v.Type()).Elem()
		was.Set(v)
		v.Set(to)
		changed(path)
		v.Set(was)
	}
	switch v.Kind() {
	case reflect.Pointer:
		try(reflect.Zero(v.Type()))
		mutate(v.Elem(), path, changed)
	case reflect.Slice:
		try(reflect.Zero(v.Type()))
		mutate(v.Index(0), path+"[0]", changed)
	case reflect.Struct:
		switch v.Interface().(type) {
		case netip.Addr:
			try(reflect.ValueOf(netip.MustParseAddr("::1")))
		case netip.AddrPort:
			try(reflect.ValueOf(netip.MustParseAddrPort("[::1]:1")))
		case netip.Prefix:
			try(reflect.ValueOf(netip.MustParsePrefix("::/1")))
		default:
			for i := range v.NumField() {
				mutate(v.Field(i), path+"."+v.Type().Field(i).Name, changed)
			}
		}
	case reflect.String:
		try(reflect.ValueOf("x").Convert(v.Type()))
	case reflect.Bool:
		try(reflect.ValueOf(true))
	default:
		try(reflect.ValueOf(77).Convert(v.Type()))
	}
}

func network(v reflect.Value) bool {
	switch v.Interface().(type) {
	case netip.Addr, netip.AddrPort, netip.Prefix:
		return true
	}
	return false
}

func TestEqualElementsShareOneResource(t *testing.T) {
	e := New()
	make := func() *plan.Plan {
		return &plan.Plan{Clusters: []*plan.Cluster{{Name: "outbound|80||a"}}}
	}
	one, two := e.Plan(make()), e.Plan(make())
	if one[ClusterType][0] != two[ClusterType][0] {
		t.Error("equal clusters were encoded twice")
	}
	other := make()
	other.Clusters[0].MaxRequests = 3
	if e.Plan(other)[ClusterType][0].Version == one[ClusterType][0].Version {
		t.Error("different clusters have one version")
	}
}

func TestCacheIsBounded(t *testing.T) {
	e := New()
	first := e.LoadAssignment(&plan.LoadAssignment{Cluster: "kept"})
	for i := range 3 * generation {
		e.LoadAssignment(&plan.LoadAssignment{Cluster: fmt.Sprint(i)})
		if i%1000 == 0 && e.LoadAssignment(&plan.LoadAssignment{Cluster: "kept"}) != first {
			t.Fatal("a resource in use was forgotten")
		}
	}
	if n := len(e.young) + len(e.old); n > 2*generation {
		t.Errorf("cache holds %d resources", n)
	}
}

func TestEncoderIsSafeForConcurrentUse(t *testing.T) {
	e := New()
	got := make([]*Resource, 8)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = e.LoadAssignment(&plan.LoadAssignment{Cluster: "c"}) })
	}
	wg.Wait()
	for _, r := range got {
		if r != got[0] {
			t.Fatal("two resources for one element")
		}
	}
}
