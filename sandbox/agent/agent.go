// Package agent is the guest's side of a machine and its client: one protocol
// for every provider, over a byte stream that never crosses the sealed network
// (an inherited socket for namespaces, virtio-serial for virtual machines).
//
//	Serve     the guest: the machine's first process, or an agent beside it
//	Client    the host: starts commands, stages files, tries probes
//	frame     length, kind, id, payload: what crosses the stream
//	group     everything that one command started, however it daemonized
//	spawner   the one thread that every command is forked from
//
// # The stream
//
// The guest speaks first: a hello with the protocol's version and a nonce, to
// which the host's first frame answers with the same nonce, so that bytes of an
// earlier life of a restored machine are not taken for this one's. From then on
// the host sends requests with rising ids and the guest answers each with a
// reply of the same id. A command's output, exit and end carry the id of the
// request that started it. A stream that ends without a bye is a failure: the
// client reports the machine as lost, and the guest kills everything that it
// started. So does a frame that cannot be parsed.
//
// # Back-pressure
//
// A command may have at most window bytes of output on the way that the host's
// callback has not consumed. Beyond that the guest stops reading its pipes, and
// the command blocks as it would on a slow terminal. Other commands go on: the
// client's reader never waits for a callback. Memory is bounded on both sides
// by window for each command whose output is open, plus one frame.
//
// # Ends
//
// The end of a command and the end of its output are two events: a daemon may
// hold the pipes for ever. When the command's own process has ended, the guest
// delivers what the pipes held at that moment, then the exit; what children
// write later follows, until the last of them has closed the pipes.
//
// # Trust
//
// The agent enforces nothing that root of its machine could not undo by taking
// it over: it has the same namespaces and the same seccomp filter. What it says
// of canaries is therefore checked against what the seal saw outside.
package agent

import "time"

const (
	// protocol changes with every incompatible change of frames or messages.
	protocol = 3

	// window bounds the output of one command that the host has not consumed.
	window = 256 << 10
	// chunk is how much of a pipe or a file goes into one frame.
	chunk = 32 << 10
	// maxFrame bounds a frame's payload, and so the size of a script.
	maxFrame = 16 << 20

	// killDeadline bounds the wait for killed processes to be gone. SIGKILL
	// takes effect at once but for a process in uninterruptible sleep.
	killDeadline = 10 * time.Second
	// settleDeadline bounds the wait for the ends of what was killed to be seen.
	settleDeadline = time.Second
)

// Options are the guest's settings; the zero value works everywhere.
type Options struct {
	// CgroupRoot is a cgroup2 folder in which the agent may make others (it may
	// be /proc/self/fd/N). Commands then run in u-UNIT/c-ID below it. It is
	// opened once, when Serve starts. Empty where there is none, as for an
	// ordinary user: then each command is marked by a cgroup namespace of its
	// own, which needs nothing but /proc.
	CgroupRoot string
	// Apart keeps units from each other's cgroups, and from packets that the rules
	// inside do not see: a command sees its own group as the root of all, and gets
	// no packet sockets. CgroupRoot must then be mounted nowhere.
	Apart bool
	// OOMEvents is a file with a line "oom_kill N" that counts what the
	// machine's memory limit killed: memory.events (v2) or memory.oom_control
	// (v1). Empty where there is no limit.
	OOMEvents string
	// Watched gives listeners of filters that Enter has installed elsewhere in
	// the machine. The agent owns what it has received.
	Watched <-chan int
}
