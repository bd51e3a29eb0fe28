package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bj/sandbox"
)

// answerTimeout bounds how long the kernel may take to answer a batch.
const answerTimeout = 30 * time.Second

// socketBuffer is for batches of tens of thousands of entries, in bytes; an
// ordinary user gets what net.core.wmem_max allows.
const socketBuffer = 32 << 20

// stepSize is how much an ordinary user sends at once: half of what the usual
// net.core.wmem_max allows, in bytes.
const stepSize = 100 << 10

// ErrNoHold says that the kernel cannot hold packets for the relay.
var ErrNoHold = errors.New("the kernel can hold packets neither with nftables (CONFIG_NFT_QUEUE) nor with the NFQUEUE target (CONFIG_NFT_COMPAT, CONFIG_NETFILTER_XT_TARGET_NFQUEUE)")

// Table is rules in force in one network namespace. Its methods may be called
// from several goroutines. The rules outlive it, until the namespace ends, so
// that they hold even while nobody looks after them: those of a hub, which
// nobody inside can reach, and those of a machine where the kernel can keep a
// table without its owner (6.9 and later); elsewhere they end with Close.
type Table struct {
	mu    sync.Mutex
	conn  *netlink.Conn  // changes rules, and owns the owned tables
	read  *nftables.Conn // reads counters
	links *vnetlink.Handle
	enc   encoding
	rules *Ruleset
}

// Apply puts r in force, in one batch, in the namespace that the descriptor
// netns refers to; zero is the caller's own. The descriptor is not needed
// afterwards. Entering another namespace takes CAP_SYS_ADMIN over it.
func Apply(netNS int, r *Ruleset) (*Table, error) {
	t := &Table{enc: encoding{flags: tableFlagOwner | tableFlagPersist}}
	if err := t.open(netNS); err != nil {
		t.Close()
		return nil, err
	}
	if err := t.Replace(r); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Table) open(netNS int) (err error) {
	t.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netNS})
	if err != nil {
		return fmt.Errorf("opening netfilter's socket: %w", err)
	}
	if err := t.conn.SetWriteBuffer(socketBuffer); err != nil {
		return fmt.Errorf("sizing netfilter's socket: %w", err)
	}
	t.read, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(netNS))
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	if netNS == 0 {
		t.links, err = vnetlink.NewHandle(unix.NETLINK_ROUTE)
	} else {
		t.links, err = vnetlink.NewHandleAt(netns.NsHandle(netNS), unix.NETLINK_ROUTE)
	}
	if err != nil {
		return fmt.Errorf("opening route netlink: %w", err)
	}
	return nil
}

// Replace puts r in force instead of what is: in one batch, at one instant. An
// ordinary user's very large rules (several thousand allows) go in steps, and
// all is dark until the last of them. After an error the table is not to be
// used any more: it may let through nothing at all.
// Where r has another generation, nothing that was open before stays open.
func (t *Table) Replace(r *Ruleset) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.prepare(r); err != nil {
		return err
	}
	err := t.put(r)
	if t.rules == nil && t.enc.flags&tableFlagPersist != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		t.enc.flags = tableFlagOwner // a kernel before 6.9
		err = t.put(r)
	}
	if err != nil {
		return fmt.Errorf("applying rules: %w", err)
	}
	old := t.rules
	t.rules = r
	// The new rules ignore what the old ones have admitted; this only makes
	// place for the same connections to be made again.
	if r.generation != 0 {
		if old == nil {
			return t.forget(nil)
		}
		if old.generation != r.generation {
			return errors.Join(t.forget(&old.generation), t.forget(new(uint8)))
		}
	}
	return nil
}

func (t *Table) put(r *Ruleset) error {
	msgs, err := t.enc.messages(r, t.rules)
	if err != nil {
		return err
	}
	if err = t.send(msgs); errors.Is(err, unix.EMSGSIZE) {
		return t.putInSteps(msgs)
	}
	return err
}

// putInSteps is put where a batch is larger than the socket takes, which an
// ordinary user cannot make larger: the old rules go, so that all is dark; then
// the sets are filled, which no rule looks at yet; then the new rules come, at
// one instant.
func (t *Table) putInSteps(msgs []netlink.Message) error {
	begin, body, end := msgs[0], msgs[1:len(msgs)-1], msgs[len(msgs)-1]
	send := func(part []netlink.Message) error {
		if len(part) == 0 {
			return nil
		}
		return t.send(slices.Concat([]netlink.Message{begin}, part, []netlink.Message{end}))
	}
	var away, sets, rules []netlink.Message
	for _, m := range body {
		switch m.Header.Type &^ (unix.NFNL_SUBSYS_NFTABLES << 8) {
		case unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELCHAIN:
			away = append(away, m)
		case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWRULE:
			rules = append(rules, m)
		default:
			sets = append(sets, m)
		}
	}
	if err := send(away); err != nil {
		return err
	}
	var size int
	var part []netlink.Message
	for _, m := range sets {
		if size += len(m.Data); size > stepSize && len(part) > 0 {
			if err := send(part); err != nil {
				return err
			}
			size, part = len(m.Data), nil
		}
		part = append(part, m)
	}
	if err := send(part); err != nil {
		return err
	}
	return send(rules)
}

// prepare finds out what the kernel and the namespace have.
func (t *Table) prepare(r *Ruleset) error {
	t.enc.missing = map[string]bool{}
	for _, table := range r.tables {
		for _, c := range table.chains {
			if c.base == nil || c.base.device == "" {
				continue
			}
			_, err := t.links.LinkByName(c.base.device)
			if errors.As(err, &vnetlink.LinkNotFoundError{}) {
				t.enc.missing[c.base.device] = true
			} else if err != nil {
				return fmt.Errorf("looking for %s: %w", c.base.device, err)
			}
		}
	}
	if !r.held || t.rules != nil && t.rules.held {
		return nil
	}
	for _, t.enc.hold = range []holding{holdNative, holdXT} {
		msgs, err := t.enc.probe()
		if err != nil {
			return err
		}
		err = t.send(msgs)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("probing for packet queues: %w", err)
		}
	}
	return ErrNoHold
}

// send sends a batch and waits for the kernel's word on its last message, or
// its first error.
func (t *Table) send(msgs []netlink.Message) error {
	if len(msgs) < 3 {
		return nil
	}
	msgs = slices.Clone(msgs)
	last := len(msgs) - 2
	for i := range msgs {
		msgs[i].Header.Sequence, msgs[i].Header.PID, msgs[i].Header.Length = 0, 0, 0
		msgs[i].Header.Flags &^= netlink.Acknowledge
	}
	msgs[last].Header.Flags |= netlink.Acknowledge
	sent, err := t.conn.SendMessages(msgs)
	if err != nil {
		return fmt.Errorf("sending a batch: %w", err)
	}
	if err := t.conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	var first error
	for {
		// The last message is always answered, also when an earlier one failed.
		answers, err := t.conn.Receive()
		var op *netlink.OpError
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return errors.Join(first, fmt.Errorf("waiting for the kernel: %w", err))
		case errors.As(err, &op):
			if first == nil {
				first = err
			}
			if t.drained() {
				return first
			}
			continue
		default:
			return errors.Join(first, err)
		}
		for _, a := range answers {
			if a.Header.Sequence == sent[last].Header.Sequence {
				return first
			}
		}
	}
}

// drained reports whether no further answer waits: those of one batch are all
// there when sending it returns.
func (t *Table) drained() bool {
	raw, err := t.conn.SyscallConn()
	if err != nil {
		return true
	}
	empty := true
	raw.Control(func(fd uintptr) {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		empty = n <= 0
	})
	return empty
}

// forget removes tracked connections: those of a generation, or all.
func (t *Table) forget(generation *uint8) error {
	const (
		ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
		ctMark   = 8                                 // CTA_MARK
		ctMask   = 21                                // CTA_MARK_MASK
	)
	data := []byte{unix.AF_UNSPEC, 0, 0, 0}
	if generation != nil {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: ctMark, Data: binary.BigEndian.AppendUint32(nil, uint32(*generation)<<generationShift)},
			{Type: ctMask, Data: binary.BigEndian.AppendUint32(nil, generationMask)},
		})
		if err != nil {
			return fmt.Errorf("forgetting connections: %w", err)
		}
		data = append(data, attrs...)
	}
	if err := t.conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	_, err := t.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge},
		Data:   data,
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forgetting connections: %w", err)
	}
	return nil
}

// Rules returns what is in force.
func (t *Table) Rules() *Ruleset {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rules
}

// Close closes the sockets. See Table for what becomes of the rules.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	if t.conn != nil {
		errs = append(errs, t.conn.Close())
		t.conn = nil
	}
	if t.read != nil {
		errs = append(errs, t.read.CloseLasting())
		t.read = nil
	}
	if t.links != nil {
		t.links.Close()
		t.links = nil
	}
	return errors.Join(errs...)
}

// Counter is one counter of the rules.
type Counter struct {
	Packets, Bytes int64
}

// Counters is what the rules have counted so far. Counters outlive Replace.
type Counters struct {
	Named map[string]Counter // CounterDropped and others
	// Frames are those that were dropped since they carry no IP, by the
	// interface at the hub and the kind (EtherType). They are not logged.
	Frames map[Frame]Counter
}

// Frame is a kind of frame at an interface.
type Frame struct {
	Interface string
	Kind      uint16 // EtherType
}

// Protocol returns what sandbox.Flow calls it: "arp" or "ether/0x88cc".
func (f Frame) Protocol() string {
	if f.Kind == unix.ETH_P_ARP {
		return "arp"
	}
	return fmt.Sprintf("ether/0x%04x", f.Kind)
}

// Used returns how often the rules have let each condition's connections
// through. It knows nothing of those that go through the relay.
func (c Counters) Used() []sandbox.Use {
	var uses []sandbox.Use
	for name, n := range c.Named {
		if number, ok := strings.CutPrefix(name, "used_"); ok {
			i, err := strconv.Atoi(number)
			if err != nil {
				continue
			}
			_, bytes := counters(i)
			uses = append(uses, sandbox.Use{Condition: i, Count: n.Packets, Bytes: c.Named[bytes].Bytes})
		}
	}
	slices.SortFunc(uses, func(a, b sandbox.Use) int { return a.Condition - b.Condition })
	return uses
}

// Counters reads what the rules have counted.
func (t *Table) Counters() (c Counters, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for range 5 {
		// The kernel breaks a list off when something is changed meanwhile.
		if c, err = t.counters(); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return c, err
}

func (t *Table) counters() (Counters, error) {
	c := Counters{Named: map[string]Counter{}, Frames: map[Frame]Counter{}}
	if t.read == nil {
		return c, errors.New("reading counters: the table is closed")
	}
	for _, table := range t.rules.tables {
		nt := &nftables.Table{Name: table.name, Family: table.family}
		if len(table.counters) > 0 {
			objs, err := t.read.GetObjects(nt)
			if err != nil {
				return c, fmt.Errorf("reading counters of %s: %w", table.name, err)
			}
			for _, o := range objs {
				if o, ok := o.(*nftables.CounterObj); ok {
					c.Named[o.Name] = Counter{Packets: int64(o.Packets), Bytes: int64(o.Bytes)}
				}
			}
		}
		for _, s := range table.sets {
			if s.size == 0 {
				continue
			}
			elements, err := t.read.GetSetElements(&nftables.Set{Table: nt, Name: s.name})
			if err != nil {
				return c, fmt.Errorf("reading set %s: %w", s.name, err)
			}
			for _, e := range elements {
				if len(e.Key) < 18 || e.Counter == nil {
					continue
				}
				name, _, _ := bytes.Cut(e.Key[:16], []byte{0})
				c.Frames[Frame{string(name), binary.BigEndian.Uint16(e.Key[16:18])}] =
					Counter{Packets: int64(e.Counter.Packets), Bytes: int64(e.Counter.Bytes)}
			}
		}
	}
	return c, nil
}
