package ns

import (
	"net"
	"net/netip"
	"os"
)

// setupRequest makes the hub and the machines. Its descriptors are, for each
// machine in order, the guest's end of its agent's channel; then, for each in
// order, its doors.
type setupRequest struct {
	Machines []machineConfig
	Root     rootConfig
	IDs      []idRange // never empty; each within one range of the gateway's own
}

// idRange maps Count ids of the machine, from Inside, to those of the gateway's
// namespace from First.
type idRange struct {
	Inside uint32
	First  uint32
	Count  uint32
}

// machineConfig is one machine as its first process needs it.
type machineConfig struct {
	Name    string
	Index   int
	V4, V6  netip.Addr
	MAC     net.HardwareAddr
	Memory  int64    // bytes; 0: no limit
	Disk    int64    // bytes
	Cgroups []string // folders, on the host, to whose cgroup.procs the machine goes
	Units   string   // the one of them, in the unified hierarchy, where the agent makes units; "" if none
	UnitsAt string   // where that is in the cgroup namespace
	Apart   bool     // units are kept apart: see agent.Options
	Events  string   // file of the cgroup that counts what the memory limit killed; "" without limits
	Base    base
	Layers  []string // folders of the host laid over its root, the first on top
	Binds   []bind
	Doors   []place // sockets, which come as descriptors
}

// place is where a door is, and who may go there.
type place struct {
	Path string
	Mode os.FileMode
}

// base is what a machine's root is made of, below layers and memory: the host's
// folders, or those of an image. Bj reads what is there, since the machine's own
// root may not be allowed to.
type base struct {
	Dir   string            // "/" for the host's
	Tops  []string          // folders of the host that the machine has; "." alone for an image, of which it has all
	Links map[string]string // symbolic links in it that the machine has, too
}

// host reports whether it is the host's own root, of which much is hidden.
func (b base) host() bool { return b.Dir == "/" }

// bind is a file of the host that the machine sees read-only.
type bind struct {
	Source string
	Path   string
}

// rootConfig is what all machines of an environment share.
type rootConfig struct {
	Hosts  string   // /etc/hosts
	Resolv string   // /etc/resolv.conf
	Shadow string   // /etc/shadow of machines with the host's root, without any hash
	Hidden []string // paths below the host's /etc that a machine must not see
	Idmap  bool     // map the host's files to the machine's ids
}
