package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/config"
)

func withObjects(objects ...metaObject) *snapshot {
	s := &snapshot{objects: make(map[config.Key]*config.Object)}
	for _, o := range objects {
		kind := config.ConfigMap
		if _, ok := o.(*corev1.Secret); ok {
			kind = config.Secret
		}
		c := object(kind, "v1", o, metav1.Now().Time)
		s.objects[c.Key] = c
	}
	return s
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Namespace: "shop"} }

func testPod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta("web-0")}
	p.Labels = map[string]string{"app": "web", "b": `say "hi"`}
	p.Spec.ServiceAccountName = "web"
	p.Spec.NodeName = nodeName
	p.Status.PodIP = "10.244.0.7"
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.244.0.7"}, {IP: "fd00::7"}}
	return p
}

func TestEnvironmentOfAContainer(t *testing.T) {
	objects := withObjects(
		&corev1.ConfigMap{ObjectMeta: meta("settings"), Data: map[string]string{"color": "green", "size": "xl"}},
		&corev1.Secret{ObjectMeta: meta("key"), Data: map[string][]byte{"word": []byte("open")}, StringData: map[string]string{"door": "left"}},
	)
	from := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	yes := true
	c := &corev1.Container{
		Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("1500m"), "memory": resource.MustParse("64Mi")}},
		EnvFrom: []corev1.EnvFromSource{
			{Prefix: "CFG_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "key"}}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: &yes}},
		},
		Env: []corev1.EnvVar{
			{Name: "PLAIN", Value: "a"},
			{Name: "BOTH", Value: "$(PLAIN)-$(CFG_color)-$(UNKNOWN)-$$(PLAIN)-$x"},
			{Name: "IP", ValueFrom: from("status.podIP")},
			{Name: "IPS", ValueFrom: from("status.podIPs")},
			{Name: "APP", ValueFrom: from("metadata.labels['app']")},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
			{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
			{Name: "WORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "key"}, Key: "word"}}},
			{Name: "ABSENT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "none", Optional: &yes}}},
			{Name: "PLAIN", Value: "b"},
		},
	}
	got, err := environment(testPod(), c, []string{"PATH=/bin"}, objects)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"PATH=/bin", "CFG_color=green", "CFG_size=xl", "door=left", "word=open", "PLAIN=b",
		"BOTH=a-green-$(UNKNOWN)-$(PLAIN)-$x", "IP=10.244.0.7", "IPS=10.244.0.7,fd00::7", "APP=web", "CPU=2", "MEM=64", "WORD=open",
	}
	if !slices.Equal(got, want) {
		t.Errorf("environment\n %q, want\n %q", got, want)
	}
}

func TestEnvironmentNamesAllThatIsMissing(t *testing.T) {
	c := &corev1.Container{
		EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}},
		Env: []corev1.EnvVar{
			{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "key"}, Key: "x"}}},
			{Name: "B", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.wings"}}},
		},
	}
	_, err := environment(testPod(), c, nil, withObjects(&corev1.Secret{ObjectMeta: meta("key")}))
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"there is no ConfigMap shop/none", `env A: there is no key "x" in Secret shop/key`, `env B: the downward API has no field "spec.wings"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}

func TestCommandsAreExpanded(t *testing.T) {
	got := expandAll([]string{"run", "--at=$(IP):80", "$(", "100$", "$$(IP)"}, []string{"IP=10.0.0.1"})
	if want := []string{"run", "--at=10.0.0.1:80", "$(", "100$", "$(IP)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestVolumesHoldFilesAndFollowChanges(t *testing.T) {
	dir := t.TempDir()
	pod := testPod()
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		{Name: "items", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "key", Items: []corev1.KeyToPath{{Key: "word", Path: "deep/w"}}}}},
		{Name: "info", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
		{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	secret := &corev1.Secret{ObjectMeta: meta("key"), Data: map[string][]byte{"word": []byte("open")}}
	check := func(name, want string) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
	if err := volumes(pod, dir, withObjects(secret, &corev1.ConfigMap{ObjectMeta: meta("settings"), Data: map[string]string{"a": "1", "b": "2"}})); err != nil {
		t.Fatal(err)
	}
	check("cfg/a", "1")
	check("cfg/b", "2")
	check("items/deep/w", "open")
	check("info/labels", "app=\"web\"\nb=\"say \\\"hi\\\"\"")

	if err := volumes(pod, dir, withObjects(secret, &corev1.ConfigMap{ObjectMeta: meta("settings"), Data: map[string]string{"a": "3"}})); err != nil {
		t.Fatal(err)
	}
	check("cfg/a", "3")
	if _, err := os.Stat(filepath.Join(dir, "cfg/b")); err == nil {
		t.Error("a key that is gone is still a file")
	}
	entries, err := os.ReadDir(filepath.Join(dir, "cfg"))
	if err != nil || len(entries) != 3 { // the data, the link to it, one file
		t.Errorf("the volume holds %v, %v", entries, err)
	}
}

func TestVolumesRefusePathsOutside(t *testing.T) {
	pod := testPod()
	pod.Spec.Volumes = []corev1.Volume{{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Items: []corev1.KeyToPath{{Key: "a", Path: "../../evil"}}}}}}
	err := volumes(pod, t.TempDir(), withObjects(&corev1.ConfigMap{ObjectMeta: meta("settings"), Data: map[string]string{"a": "1"}}))
	if err == nil || !strings.Contains(err.Error(), "../../evil") {
		t.Errorf("err = %v", err)
	}
}
