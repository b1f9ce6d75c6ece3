package main

import (
	"fmt"
	"path/filepath"
)

func etcdFlags(s *spec, i int) []string {
	return []string{"etcd", "-data-dir", filepath.Join(s.nodeDir(i), "etcd"), "-listen", "http://127.0.0.1:2379", "-peer", "http://127.0.0.1:2380"}
}

func apiserverFlags(s *spec) []string {
	return append([]string{"kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--advertise-address=" + s.nodeAddr(1).Addr().String(),
		"--secure-port=6443",
		"--tls-cert-file=" + s.pki("apiserver.crt"),
		"--tls-private-key-file=" + s.pki("apiserver.key"),
		"--client-ca-file=" + s.pki("ca.crt"),
		"--kubelet-client-certificate=" + s.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + s.pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + s.pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + s.pki("sa.pub"),
		"--service-account-signing-key-file=" + s.pki("sa.key"),
		"--requestheader-client-ca-file=" + s.pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + s.pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + s.pki("front-proxy-client.key"),
		"--enable-aggregator-routing",
		"--service-cluster-ip-range=" + s.both(s.services(), s.services6()),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
	}, s.APIServerFlags...)
}

// Nothing elects a leader: there is one of each, and an election costs seconds.

func controllerFlags(s *spec) []string {
	return append([]string{"kube-controller-manager",
		"--kubeconfig=" + s.pki("kube-controller-manager.kubeconfig"),
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--root-ca-file=" + s.pki("ca.crt"),
		"--service-account-private-key-file=" + s.pki("sa.key"),
		"--cluster-signing-cert-file=" + s.pki("ca.crt"),
		"--cluster-signing-key-file=" + s.pki("ca.key"),
		"--cluster-cidr=" + s.both(s.allPods(), s.allPods6()),
		"--service-cluster-ip-range=" + s.both(s.services(), s.services6()),
		"--allocate-node-cidrs=false", // the nodes' ranges are in their CNI configuration
		"--bind-address=127.0.0.1",
		// By default it asks 20 times a second; its start alone takes some 100 questions.
		"--kube-api-qps=1000", "--kube-api-burst=2000",
	}, s.ControllerFlags...)
}

func schedulerFlags(s *spec) []string {
	config := s.pki("kube-scheduler.kubeconfig")
	return []string{"kube-scheduler", "--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--leader-elect=false", "--bind-address=127.0.0.1"}
}

func kubeletFlags(s *spec, i int) []string {
	return []string{"kubelet", "--config=/run/kubelet.yaml",
		"--kubeconfig=" + s.pki(s.node(i)+".kubeconfig"),
		"--hostname-override=" + s.node(i),
		"--node-ip=" + s.both(s.nodeAddr(i).Addr(), s.nodeAddr6(i).Addr())}
}

func kubeletConfig(s *spec, i int) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true, cacheTTL: 10s}, x509: {clientCAFile: %[1]q}}
authorization: {mode: Webhook}
tlsCertFile: %[2]q
tlsPrivateKeyFile: %[3]q
containerRuntimeEndpoint: unix://%[4]s
clusterDNS: [%[5]s]
clusterDomain: cluster.local
cgroupDriver: cgroupfs
cgroupRoot: /%[6]s
# It checks what mountNode shows it, and changes nothing.
protectKernelDefaults: true
failSwapOn: false
resolvConf: /etc/resolv.conf
# The disk of a shared machine may be nearly full, and images come from no registry.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%, nodefs.inodesFree: 1%%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
localStorageCapacityIsolation: false
maxPods: 250
logging: {verbosity: 1}
`, s.pki("ca.crt"), s.pki(s.node(i)+"-server.crt"), s.pki(s.node(i)+"-server.key"), containerdSocket, s.dns(), s.cgroup(i))
}

// proxyConfig leaves conntrack alone: its limits belong to the machine.
func proxyConfig(s *spec, i int) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: %s
clientConnection: {kubeconfig: %q}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, s.Proxy, s.node(i), s.both(s.allPods(), s.allPods6()), s.pki("kube-proxy.kubeconfig"))
}

// containerdConfig restricts what would need CAP_SYS_RESOURCE, which root on a
// rented machine may lack.
func containerdConfig(s *spec, i int) string {
	root := filepath.Join(s.nodeDir(i), "containerd")
	return fmt.Sprintf(`version = 2
root = %[1]q
state = "/run/containerd"
[grpc]
  address = %[2]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[3]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[4]q
  enable_selinux = false
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`, root, containerdSocket, filepath.Join(root, "opt"), pauseImage)
}

func cniConfig(s *spec, i int) string {
	ranges, routes := fmt.Sprintf(`[{"subnet":%q}]`, s.pods(i)), `{"dst":"0.0.0.0/0"}`
	if s.Dual {
		ranges += fmt.Sprintf(`,[{"subnet":%q}]`, s.pods6(i))
		routes += `,{"dst":"::/0"}`
	}
	return fmt.Sprintf(`{"cniVersion":"0.4.0","name":"kube","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[%s],"routes":[%s]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
`, ranges, routes)
}
