// Package sandbox is the vocabulary of sealed environments: what a provider
// leases, what is sealed, what runs there, and what was seen. It makes no
// system call; sandbox/ns is the embedded provider, and sandbox/sandboxtest
// holds what every provider must satisfy.
//
//	Provider      leases environments
//	Spec          what is asked for: machines, files, policy, supply
//	Environment   one recipe's machines, their network and the seal
//	Machine       runs commands, is crashed
//	Policy        what is open; everything else is dark
//	Flow          attempts that the seal blocked
//	Use           how often a condition was used
//	Canary        something that was tried from inside and must not work
//
// The order is fixed: Lease, Seal, Canaries, any number of commands, Canaries,
// Release. Nothing of the recipe runs before Seal has returned. An Environment
// has one owner, who calls Release exactly once; if that process dies, the
// environment dies with it, and Reap in a later process removes what is left.
package sandbox

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"bj/fleet"
)

// Provider leases environments.
type Provider interface {
	// Name is what --sandbox calls it.
	Name() string
	// Check reports whether this host can run it at all: an *Error with what
	// is missing and what mends it, or nil.
	Check(ctx context.Context) error
	// Ready reports in no time, and before anything is made for a lease, what
	// this host lacks: an *Error with what mends it, or nil.
	Ready(ctx context.Context) error
	// Lease makes fresh machines, stages the files of spec, and stops before
	// anything of the recipe could run. A partial lease is undone.
	Lease(ctx context.Context, spec Spec) (Environment, error)
	// Reap removes what environments without a living owner have left, and
	// says what that was. It never touches those of a living owner.
	Reap(ctx context.Context) (removed []string, err error)
}

// Spec is what is asked of a provider.
type Spec struct {
	Owner    string        // the recipe's label, for people
	Deadline time.Time     // after it the provider may destroy the lease; zero means none
	Machines []MachineSpec // in order
	Policy   Policy
	// Users are the accounts, beside root, that commands will run as. A provider
	// that cannot give them their ids refuses the lease (CodeLimits).
	Users []string
	// Dial is the only way out: the relay calls it for each new connection that
	// Policy allows, and the machine's handshake completes only if it returns
	// without an error. Network is "tcp", "udp" or "icmp". The connection must
	// have a File method, as those of package net do: its descriptor goes to
	// the gateway. Nil means that nothing is relayed.
	Dial func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
}

// MachineSpec is one machine of a Spec.
type MachineSpec struct {
	Name   string // host name
	CPUs   int
	Memory int64 // bytes
	Disk   int64 // bytes
	Image  *fleet.Image
	V4, V6 netip.Addr
	Files  []File
}

// File is something staged on a machine before the seal closes: bytes, or a
// file or tree of the host, which the machine sees as it is but cannot change
// on the host.
type File struct {
	Path     string // absolute, on the machine; "/" for a tree that is laid over the root
	Mode     uint32
	Content  []byte
	Source   string // path on the host, instead of Content
	Tree     bool   // Source is a folder
	ReadOnly bool   // the machine need not be able to change it: a program, say
	// Absent says the opposite: what the machine's root has there is taken away,
	// for everyone in it. Path is then a pattern, as path.Match has it.
	Absent bool
	// About and Digest say what came for free with it, for people: "coredns:
	// github.com/coredns/coredns@v1.11.3, built with go1.26.8", and the SHA-256
	// in hex. Empty for what the recipe itself spells out.
	About, Digest string
}

// Policy is what is open. Everything else is dark, on every interface.
type Policy struct {
	// Internal ports are open within and between the machines of the
	// environment, on their addresses and on loopback, in IPv4 and IPv6.
	Internal []fleet.Ports
	// Declared are further addresses that the service says are its own, such as
	// one that moves from machine to machine: a machine that has taken one
	// reaches the Internal ports on it, as on its other addresses.
	Declared []netip.Addr
	// Allows are opened beside that, each on its own.
	Allows []Allow
	// Names may be resolved beside that; the gate leaves every other question
	// unanswered.
	Names []Names
	// Sockets of the host's daemons are there beside that.
	Sockets []Socket
	// Units numbers the units of the environment from 1 on, if something of the
	// above is for some of them alone: so that a packet can say whose it is. It is
	// the same in all policies of a lease, and empty where nothing is. Units
	// beyond MaxUnits are not told apart; whatever is for some names earlier ones.
	Units []string
	// Authority is of the lease: needed where an Allow inspects TLS.
	Authority *Authority
	// Dark are conditions that were open and are closed again. Sealing with more
	// of them, and nothing else changed, cuts what they had let through and
	// leaves every other connection alone; any other change cuts all.
	Dark []Dark
}

// Allow opens one protocol to one set of addresses and ports, outwards. An
// address of loopback is the machine's own loopback, one of a machine in the
// environment is that machine, every other goes through the relay.
type Allow struct {
	Condition int      // index into the recipe's conditions, for Use
	Machines  []string // from which machines; all if empty
	Units     []string // from which units of them, each of Policy.Units; from all, and from no unit, if empty
	Protocol  string   // "tcp", "udp" or "icmp"
	Prefix    netip.Prefix
	First     uint16 // ports, both included; 0 for icmp
	Last      uint16
	// HTTP says that what is sent there is judged; nil opens it as it is.
	HTTP *HTTP
}

// HTTP is what requests to an Allow must be. Of several for one destination each
// opens what it says.
type HTTP struct {
	TLS  bool   // https
	Host string // the name or address as it was written, in lower case: of Host and of SNI
	// Path is a prefix by whole segments; empty for all.
	Path    string
	Methods []string // empty for all
	// Inspect says that TLS ends at the relay, which shows a certificate of
	// Policy.Authority; otherwise only the name that the connection asks for is
	// looked at.
	Inspect bool
	CA      string // certificates, in PEM, that the other side is verified with; empty for the host's
}

// Authority signs the certificates that the relay shows to machines. Both are
// PEM.
type Authority struct{ Cert, Key []byte }

// Names lets names be resolved. The gate asks the servers itself, in words of its
// own, and tells addresses and nothing else.
type Names struct {
	Condition int      // as of an Allow
	Machines  []string // as of an Allow
	Units     []string // as of an Allow
	Pattern   string   // "pkgs.internal", "*.pkgs.internal" for all below it, or "*"
	Servers   []Server // whom to ask: the first, then the others while it is silent
}

// Socket is a Unix stream socket of the host at the same path on machines: what
// connects there is connected to it, as whoever runs bj, and no descriptors
// pass. It is made by Lease, of Spec.Policy; a later policy can only close it.
type Socket struct {
	Condition int      // as of an Allow
	Machines  []string // as of an Allow
	Units     []string // as of an Allow
	Path      string   // absolute
}

// Server answers questions about names.
type Server struct {
	Network string // "udp" or "tcp"
	Addr    netip.AddrPort
}

// Environment is a leased set of machines.
type Environment interface {
	Name() string // the lease's name; everything it owns carries it
	Root() string // what the machines run on, for the verdict: "host Debian 12 (bookworm)"
	// Free lists what came for free, beyond files that the Spec put there:
	// "names: hosts file", "clock: the host's". See the third honesty rule.
	Free() []string
	Machines() []Machine
	// Seal closes the environment to what Policy says; connections made before
	// do not survive it. It can be called again with a narrower policy.
	Seal(ctx context.Context, p Policy) error
	// Canaries tries from inside every machine what must not work.
	Canaries(ctx context.Context) ([]Canary, error)
	// Blocked returns all attempts that the seal blocked so far, the same ones
	// counted together, in order of first sight, without those of canaries.
	Blocked(ctx context.Context) ([]Flow, error)
	// Used returns how often each condition of the policy was used so far.
	Used(ctx context.Context) ([]Use, error)
	// Rules returns the packet filter's rules as applied, as text.
	Rules(ctx context.Context) (string, error)
	// Dial connects from outside to an address inside, for environments that
	// supply others. Network is as in Spec.Dial.
	Dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// Lost is closed when the environment has died without being released.
	Lost() <-chan struct{}
	// Release destroys everything. It may be called more than once.
	Release(ctx context.Context) error
}

// Machine runs commands.
type Machine interface {
	Name() string
	// Start runs c. Output is called from one goroutine at a time, in order,
	// also after the command has ended as long as a child of it writes.
	Start(ctx context.Context, c Command, output func(Stream, []byte)) (Process, error)
	// KillUnit kills every process of the unit with SIGKILL and returns how
	// many there were.
	KillUnit(ctx context.Context, unit string) (int, error)
	// Crash ends the machine as a power failure would: at once, and for good.
	Crash(ctx context.Context) error
	// Lost is closed when the machine is gone: crashed, or dead by itself.
	Lost() <-chan struct{}
	// Why says what is known, beyond that it ended, of why a machine is lost, as
	// half a sentence for people; mostly it is empty.
	Why() string
}

// Stream says where a command wrote.
type Stream string

const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Command is one thing to run: Script by /bin/sh -e in a fresh shell, or Argv
// itself. It starts in the user's home folder (/root).
type Command struct {
	Script string
	Argv   []string
	Env    map[string]string
	User   string // "" means root
	// Unit names the process group that the command and all that it starts
	// belong to. Commands of the same unit share it.
	Unit string
	// Input gives the command an input, which Process.Write fills and
	// CloseInput ends. Without it there is none.
	Input bool
	// Terminal gives the command a terminal of its own instead, to which all that
	// it prints goes (as Stdout), and whose job control works. Nil: none.
	Terminal *Terminal
}

// Terminal is the size of one, in characters.
type Terminal struct{ Rows, Columns uint16 }

// Process is a command that was started.
type Process interface {
	// Write sends b to the command's input or terminal, and returns when it has
	// been taken there.
	Write(ctx context.Context, b []byte) error
	// CloseInput ends the command's input. A terminal has no end.
	CloseInput(ctx context.Context) error
	// Resize tells the command's terminal its size.
	Resize(ctx context.Context, size Terminal) error
	// Wait returns when the command itself has ended and everything that it
	// wrote until then was given to output; its children may live on. An error
	// means that its end is not known: the machine is lost, or ctx is done.
	Wait(ctx context.Context) (Exit, error)
	// Kill kills the command and all that it started, whatever its unit does.
	Kill(ctx context.Context) error
	// Done is closed when Wait would return at once.
	Done() <-chan struct{}
}

// Exit is how a command ended.
type Exit struct {
	Code   int    // exit code; 128+n if signal n ended it
	Signal string // "SIGKILL"; empty if it exited by itself
	OOM    bool   // the machine's memory limit ended it
}

// Canary is one probe of the seal.
type Canary struct {
	Machine string
	Probe   string // what was tried: "tcp 192.0.2.1:443"
	Held    bool   // it went nowhere, and was seen to be stopped
	Detail  string // what was seen, if it did not hold
}

// Flow is a blocked attempt: equal ones are one Flow.
type Flow struct {
	Machine   string
	Interface string // "lo" for what stayed inside the machine, "eth0" otherwise
	// Protocol is "tcp", "udp", "icmp", "icmpv6", "ip/132", "arp", "ether/0x88cc",
	// "unix", "http" or "https" for a request that the relay did not pass on, or
	// "dns" for a question about Name that the gate left unanswered.
	Protocol    string
	Source      netip.AddrPort
	Destination netip.AddrPort // port 0 where the protocol has none
	Name        string         // the name that had been asked for, or whose answer was Destination
	Path        string         // of a Unix socket that was not there, for "unix"; of a request, for "http" and "https"
	Method      string         // of a request
	// Unit is the one of Policy.Units that it came from, as the seal itself knows;
	// empty where there are none, and for what comes from no unit.
	Unit        string
	Origin      *Origin // nil if not known
	Running     bool    // its process had not ended when this was asked for
	Idle        bool    // it was for a machine of the environment where nobody listens for it
	Count       int64
	First, Last time.Time
}

// Origin is the process behind a Flow, or the last of several like ones.
type Origin struct {
	PID     int      // as the machine numbers it
	Exe     string   // path of its program
	Argv    []string // cut where it is long
	Unit    string   // of the command that it descends from
	Parents []string // command lines of its ancestors within the unit, the nearest first
}

// Use is how often a condition was used.
type Use struct {
	Condition int
	Count     int64 // connections, or packets where there are none
	Bytes     int64
}

// ErrCommand is in the error of a command that could not be started for a
// reason that lies in the command, such as an account that the machine does
// not have.
var ErrCommand = errors.New("the command cannot be started")

// ErrTemplate is in the error of a lease whose template turned out to be of no
// use: without it the same lease may succeed.
var ErrTemplate = errors.New("the template cannot be used")

// Code says what kind of failure of the environment an Error is; it becomes
// the code of the verdict.
type Code string

const (
	CodeLease     Code = "lease"     // no machine could be had
	CodeLimits    Code = "limits"    // the host cannot keep a limit that the recipe asks for
	CodeLeak      Code = "leak"      // the seal was seen not to hold
	CodeCondition Code = "condition" // an allowed endpoint does not answer
	CodeSupply    Code = "supply"    // a supplier cannot be brought up
)

// Error is a failure of the environment rather than of the recipe.
type Error struct {
	Code Code
	Err  error
	Hint string // what mends it
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// AsError returns the *Error in err's chain, or wraps err as one of code.
func AsError(err error, code Code) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Code: code, Err: err}
}

// Tool is a program that a recipe brings.
type Tool = fleet.Tool

// Image is what a machine boots.
type Image = fleet.Image

// Ports are ports of one protocol.
type Ports = fleet.Ports

// Stager makes a recipe's tools into files, and the image that they are for,
// building and fetching what is not in its cache. Tools are independent, and may
// be made in parallel.
type Stager interface {
	// Stage returns the files that put the tools on PATH of a machine that boots
	// image, nil being the provider's own choice, and has the image made, too: a
	// lease finds it in the cache. Progress takes words for people; it may be
	// called from several goroutines. An error names the tool or image.
	Stage(ctx context.Context, tools []Tool, image *Image, progress func(string)) ([]File, error)
}
