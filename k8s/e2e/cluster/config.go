//go:build linux

package cluster

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
)

// kubeletSysctls are the values that the kubelet wants of settings that belong
// to the whole machine.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

const (
	apiServer     = "https://127.0.0.1:6443"
	adminToken    = "admin" // the API server is reachable only inside the cluster's network
	pauseImage    = "sealane.test/pause:e2e"
	clusterDomain = "cluster.local"
)

// configure writes the files that the programs read.
func (c *Cluster) configure(context.Context) error {
	files := map[string]string{
		"hosts":            "127.0.0.1 localhost\n::1 localhost\n" + nodeIP + " " + nodeName + "\n",
		"resolv.conf":      "nameserver " + nodeIP + "\n",
		"tokens.csv":       adminToken + ",admin,admin,system:masters\n",
		"admin.kubeconfig": kubeconfig,
		"containerd.toml":  c.fill(containerdConfig),
		"cni/net.conflist": cniConfig,
		"kubelet.yaml":     c.fill(kubeletConfig),
		"kube-proxy.yaml":  c.fill(kubeProxyConfig),
		"Corefile":         c.fill(corefile),
	}
	for sysctl, value := range kubeletSysctls {
		files["sysctl/"+sysctl] = value + "\n"
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(c.path(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(c.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return os.WriteFile(c.path("service-account.key"), text, 0o600)
}

func (c *Cluster) fill(template string) string {
	return strings.NewReplacer("DIR", c.dir, "NODE_IP", nodeIP, "NODE_NAME", nodeName, "PAUSE", pauseImage,
		"SOCKET", containerdSocket, "CGROUP", cgroup, "POD_CIDR", podCIDR, "DOMAIN", clusterDomain).Replace(template)
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters:
- name: e2e
  cluster: {server: "` + apiServer + `", insecure-skip-tls-verify: true}
users:
- name: admin
  user: {token: ` + adminToken + `}
contexts:
- name: e2e
  context: {cluster: e2e, user: admin}
current-context: e2e
`

// restrict_oom_score_adj lets sandboxes start where root lacks CAP_SYS_RESOURCE.
const containerdConfig = `version = 2
root = "DIR/containerd"
state = "/run/containerd"
[grpc]
  address = "SOCKET"
[plugins."io.containerd.internal.v1.opt"]
  path = "DIR/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "PAUSE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "DIR/debs/usr/lib/cni"
    conf_dir = "DIR/cni"
`

const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "e2e",
  "plugins": [{
    "type": "bridge",
    "bridge": "` + bridge + `",
    "isGateway": true,
    "hairpinMode": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + podCIDR + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://SOCKET
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /CGROUP
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
clusterDNS: [NODE_IP]
clusterDomain: DOMAIN
volumePluginDir: DIR/volume-plugins
resolvConf: DIR/resolv.conf
evictionHard: {memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
syncFrequency: 5s
shutdownGracePeriod: 0s
`

const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: DIR/admin.kubeconfig}
mode: nftables
clusterCIDR: POD_CIDR
hostnameOverride: NODE_NAME
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

const corefile = `.:53 {
    errors
    ready 127.0.0.1:8181
    kubernetes DOMAIN in-addr.arpa {
        kubeconfig DIR/admin.kubeconfig
        pods insecure
        ttl 1
    }
}
`

// programs are the programs of the cluster in the order of their start.
func programs(dir string) []program {
	kube := func(name string, flags ...string) []string {
		return append([]string{dir + "/bin/kube", name}, flags...)
	}
	apiUp := listens("tcp", "127.0.0.1:6443")
	return []program{
		{name: "etcd", command: []string{dir + "/debs/usr/bin/etcd", "--data-dir", dir + "/etcd", "--unsafe-no-fsync",
			"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
			"--listen-peer-urls", "http://127.0.0.1:2380"}},
		{name: "containerd", command: []string{"/usr/bin/containerd", "--config", dir + "/containerd.toml"}},
		{name: "kube-apiserver", after: listens("tcp", "127.0.0.1:2379"), command: kube("kube-apiserver",
			"--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address="+nodeIP,
			"--cert-dir="+dir+"/pki", "--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true",
			"--authorization-mode=Node,RBAC", "--token-auth-file="+dir+"/tokens.csv",
			"--service-account-issuer=https://kubernetes.default.svc."+clusterDomain,
			"--service-account-key-file="+dir+"/service-account.key",
			"--service-account-signing-key-file="+dir+"/service-account.key",
			"--kubelet-preferred-address-types=InternalIP")},
		{name: "kube-controller-manager", after: apiUp, command: kube("kube-controller-manager",
			"--kubeconfig="+dir+"/admin.kubeconfig", "--authentication-kubeconfig="+dir+"/admin.kubeconfig",
			"--authorization-kubeconfig="+dir+"/admin.kubeconfig", "--cert-dir="+dir+"/pki-cm", "--leader-elect=false",
			"--flex-volume-plugin-dir="+dir+"/volume-plugins", "--root-ca-file="+dir+"/pki/apiserver.crt", "--service-account-private-key-file="+dir+"/service-account.key")},
		{name: "kube-scheduler", command: kube("kube-scheduler",
			"--kubeconfig="+dir+"/admin.kubeconfig", "--authentication-kubeconfig="+dir+"/admin.kubeconfig",
			"--authorization-kubeconfig="+dir+"/admin.kubeconfig", "--cert-dir="+dir+"/pki-sched", "--leader-elect=false")},
		{name: "coredns", command: []string{dir + "/bin/coredns", "-conf", dir + "/Corefile"}},
		{name: "kube-proxy", command: kube("kube-proxy", "--config="+dir+"/kube-proxy.yaml")},
		{name: "kubelet", after: listens("unix", containerdSocket), command: kube("kubelet", "--config="+dir+"/kubelet.yaml",
			"--kubeconfig="+dir+"/admin.kubeconfig", "--hostname-override="+nodeName, "--node-ip="+nodeIP)},
	}
}
