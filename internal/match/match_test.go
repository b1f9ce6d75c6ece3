package match

import "testing"

func TestLabelsNeedEveryPairOfTheSelector(t *testing.T) {
	labels := map[string]string{"app": "a", "version": "v1", "empty": ""}
	for _, c := range []struct {
		selector map[string]string
		want     bool
	}{
		{nil, true},
		{map[string]string{"app": "a"}, true},
		{map[string]string{"app": "a", "version": "v1"}, true},
		{map[string]string{"app": "a", "version": "v2"}, false},
		{map[string]string{"empty": ""}, true},
		{map[string]string{"missing": ""}, false},
	} {
		if got := Labels(c.selector, labels); got != c.want {
			t.Errorf("Labels(%v) = %v", c.selector, got)
		}
	}
}
