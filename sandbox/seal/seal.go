// Package seal holds what an environment's packet filter lets through: it
// compiles a sandbox.Policy to nftables rules, which is pure, applies them in
// one atomic batch, and watches what they drop.
//
//	Hub            the network namespace that all machines hang on
//	Machine        one machine, and its place at the hub
//	CompileHub     Policy and Hub → the rules of the hub
//	CompileMachine Policy and Machine → the rules inside the machine
//	Ruleset        compiled rules; prints as a file for nft
//	Table          rules in force in one namespace: Replace, Counters, Close
//	Watch          calls back for every packet that was dropped
//	Flows          makes drops into sandbox.Flow, equal ones counted
//
// The hub decides about everything that leaves a machine, from outside of it.
// Only what stays inside a machine, on loopback, is decided there, by a table
// that belongs to a socket outside (`flags owner`), so that root in the machine
// can neither change nor remove it.
//
// Nothing is refused and everything is dropped: an outage looks like silence.
//
// # Marks
//
// A connection that the rules have let through carries a connection mark: the
// generation of the rules in the highest eight bits, then one bit that says
// whether the relay carries it, and in the lowest sixteen the condition that
// allowed it, plus one. Packets of a connection pass only under the generation
// that admitted it, so that replacing the rules cuts what was open before, in
// the same instant.
//
// A packet mark says what becomes of a packet next (see Marks); it cannot be
// set from inside a machine, since the kernel clears it between namespaces.
package seal

import "net/netip"

// Names of the tables.
const (
	TableHub     = "bj_hub"     // inet, in the hub
	TableFrames  = "bj_frames"  // netdev, in the hub
	TableMachine = "bj_machine" // inet, in a machine
)

// Packet marks, which rules, relay and routing agree upon.
const (
	// MarkDeliver sends a packet to the relay's sockets: the hub needs a routing
	// rule for it, to a table with a local default route.
	MarkDeliver = 1
	// MarkDialled is the relay's verdict on a held packet whose destination
	// answered: the handshake goes on.
	MarkDialled = 2
	// MarkRefused is its verdict where the destination refused: a reset.
	MarkRefused = 3
	// MarkReply is on packets that the relay itself makes: echo replies.
	MarkReply = 4
)

// What a machine sends carries a mark that says which unit it is from, where the
// policy names units, until one of the marks above takes its place; 0 is what no
// socket has sent.
const (
	markUnits = 0x100
	// MarkOther is a socket of none of the policy's units.
	MarkOther = markUnits + 0xff
)

// MarkUnit is of the unit of that number: see sandbox.Policy.Number.
func MarkUnit(number int) uint32 { return markUnits + uint32(number) }

// Connection marks.
const (
	generationShift = 24
	generationMask  = 0xff << generationShift
	relayedBit      = 1 << 23
	conditionMask   = 0xffff
)

// LinkMTU is what the links between hub and machines should have, in bytes: the
// most that a veth link takes. With the usual 1500 the relay carries about two
// thirds as much.
const LinkMTU = 65535

// Hub is the network namespace that all machines of an environment hang on:
// without a link, route or address that leads anywhere else.
type Hub struct {
	// Generation distinguishes one sealing from the next: 1 to 255. Replace
	// with another one cuts all connections.
	Generation uint8
	Machines   []Machine
	// Gateway4 and Gateway6 are the hub's own addresses. What the hub itself
	// sends from them to machines is let through.
	Gateway4, Gateway6 netip.Addr
	// RelayTCP and RelayUDP are the ports of the relay's transparent sockets,
	// on any address. Zero means that there is no relay, and that allows to
	// addresses outside of the environment open nothing.
	// Where the policy has units, the unit n has the port RelayUDP + n.
	RelayTCP, RelayUDP uint16
	Queue              uint16 // the NFQUEUE of held packets
	Group              uint16 // the NFLOG group of dropped packets
}

// Machine is one machine and its place at the hub.
type Machine struct {
	Name      string
	Interface string // the hub's end of its link
	V4, V6    netip.Addr
	// Tagged says that its kernel is its own, so that the rules inside write into
	// each packet which unit it is from. Otherwise MarkSenders says so in the hub.
	Tagged bool
}

// Inside is what CompileMachine needs to know of one machine.
type Inside struct {
	Machine
	// Generation is that of the hub; 1 if zero.
	Generation uint8
	// Uplink is the machine's own end of its link; "eth0" if empty.
	Uplink string
	// UplinkIndex is its number, where that is known: an interface that root
	// in the machine makes under the same name then counts for nothing.
	UplinkIndex int
	// Group is the NFLOG group of dropped packets, in the machine's namespace.
	Group uint16
	// Cgroups are those of the policy's units, in their order.
	Cgroups []Cgroup
}

// Cgroup is a folder of version 2.
type Cgroup struct {
	Path string // from the root of the cgroup namespace of the process that applies the rules, without a slash before it
	ID   uint64 // the folder's inode
}

// Prefixes of the log say why a packet was dropped; see Drop.Reason.
const (
	reasonForged    = "forged"    // its source is not the machine's, or its header is not plain
	reasonClosed    = "closed"    // nothing allows it
	reasonStray     = "stray"     // it belongs to no connection that was let through
	reasonInterface = "interface" // an interface that the machine must not have
)

// Names of counters, beside those of conditions.
const (
	CounterDropped = "dropped" // what was dropped: all of it, logged or not
	CounterSilent  = "silent"  // what the hub's own kernel wanted to say, and did not
)
