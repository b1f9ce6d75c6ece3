package inject

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Workload is what pods are made by: the Deployment, not its ReplicaSet.
type Workload struct {
	APIVersion, Kind, Name string
}

// cronSuffix is what a CronJob adds to the name of a Job: the minutes since 1970.
var cronSuffix = regexp.MustCompile(`^(.+)-\d{8,11}$`)

// workloadOf finds a pod's workload by its owner. When a pod is admitted, it has
// its owner already, but may have no name yet.
func workloadOf(pod *corev1.Pod) Workload {
	fallback := Workload{APIVersion: "v1", Kind: "Pod", Name: pod.Name}
	if fallback.Name == "" {
		fallback.Name = strings.TrimSuffix(pod.GenerateName, "-")
	}
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return fallback
	}
	w := Workload{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name}
	switch owner.Kind {
	case "ReplicaSet":
		// Only a Deployment's ReplicaSet puts a hash into its pods' labels and its own name.
		if name, ok := strings.CutSuffix(owner.Name, "-"+pod.Labels["pod-template-hash"]); ok && pod.Labels["pod-template-hash"] != "" {
			w.Kind, w.Name = "Deployment", name
		}
	case "ReplicationController":
		if dc := pod.Labels["deploymentconfig"]; dc != "" {
			w = Workload{APIVersion: "apps.openshift.io/v1", Kind: "DeploymentConfig", Name: dc}
		}
	case "Job":
		if m := cronSuffix.FindStringSubmatch(owner.Name); m != nil {
			w.Kind, w.Name = "CronJob", m[1]
		}
	}
	return w
}
