package seal

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// holding is how a kernel holds packets for a program.
type holding int

const (
	holdNative holding = iota // nftables' own queue statement
	holdXT                    // the NFQUEUE target of iptables, through nft_compat
)

// elementsPerMessage keeps a message's list of elements below the 64 KiB that
// a netlink attribute can hold.
const elementsPerMessage = 500

// tableFlagPersist keeps a table whose owner is gone (since Linux 6.9).
const (
	tableFlagOwner   = 2
	tableFlagPersist = 4
)

// encoding is what a Ruleset becomes for a particular kernel.
type encoding struct {
	hold    holding
	flags   uint32          // of owned tables
	missing map[string]bool // interfaces that do not exist any more
}

// messages returns the netlink messages that put r in force in place of old,
// which may be nil. Base chains that both have keep their place at their hook,
// and counters keep their values.
//
// google/nftables builds the messages; its connection is not used to send
// them, since it can neither make tables with an owner nor read the answers of
// a large batch.
func (e encoding) messages(r, old *Ruleset) ([]netlink.Message, error) {
	var out []netlink.Message
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		out = append(out, sent...)
		return nil, io.EOF
	}))
	if err != nil {
		return nil, fmt.Errorf("encoding rules: %w", err)
	}
	for _, t := range r.tables {
		var before *table
		if old != nil {
			if i := slices.IndexFunc(old.tables, func(o *table) bool { return o.name == t.name }); i >= 0 {
				before = old.tables[i]
			}
		}
		if err := e.table(conn, t, before); err != nil {
			return nil, fmt.Errorf("encoding table %s: %w", t.name, err)
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("encoding rules: %w", err)
	}
	// No answers but for the last message, or the first error; and no echo.
	const newTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE
	owned := map[string]bool{}
	for _, t := range r.tables {
		owned[t.name] = t.owned
	}
	for i := range out {
		h := &out[i].Header
		h.Flags &^= netlink.Acknowledge
		if h.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE {
			h.Flags &^= netlink.Echo
		}
		if h.Type == newTable && owned[tableName(out[i].Data)] {
			// The flags are the message's last attribute.
			binary.BigEndian.PutUint32(out[i].Data[len(out[i].Data)-4:], e.flags)
		}
	}
	if len(out) > 2 {
		out[len(out)-2].Header.Flags |= netlink.Acknowledge
	}
	return out, nil
}

// tableName returns the name in a message that makes a table.
func tableName(data []byte) string {
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_TABLE_NAME {
			return ad.String()
		}
	}
	return ""
}

func (e encoding) table(conn *nftables.Conn, t, old *table) error {
	nt := &nftables.Table{Name: t.name, Family: t.family}
	if old == nil {
		conn.AddTable(nt)
	} else {
		conn.FlushTable(nt)
		for _, s := range old.sets {
			conn.DelSet(&nftables.Set{Table: nt, Name: s.name})
		}
		for _, c := range old.chains {
			if !slices.ContainsFunc(t.chains, func(n *chain) bool { return n.name == c.name }) && !e.gone(c) {
				conn.DelChain(&nftables.Chain{Table: nt, Name: c.name})
			}
		}
	}
	for _, name := range t.counters {
		if old == nil || !slices.Contains(old.counters, name) {
			conn.AddObj(&nftables.CounterObj{Table: nt, Name: name})
		}
	}
	for i, s := range t.sets {
		if err := s.encode(conn, nt, uint32(i+1)); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	chains := map[string]*nftables.Chain{}
	for _, c := range t.chains {
		if e.gone(c) {
			continue
		}
		nc := &nftables.Chain{Table: nt, Name: c.name}
		if b := c.base; b != nil {
			nc.Type, nc.Hooknum, nc.Device = nftables.ChainTypeFilter, b.hook, b.device
			nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(b.priority))
			nc.Policy = &b.policy
		}
		chains[c.name] = nc
		if old == nil || !slices.ContainsFunc(old.chains, func(o *chain) bool { return o.name == c.name }) {
			conn.AddChain(nc)
		}
	}
	for _, c := range t.chains {
		if e.gone(c) {
			continue
		}
		for _, r := range c.rules {
			nr := &nftables.Rule{Table: nt, Chain: chains[c.name]}
			for _, p := range r {
				for _, x := range p.exprs {
					if q, ok := x.(*expr.Queue); ok && e.hold == holdXT {
						x = xtQueue(q.Num)
					}
					nr.Exprs = append(nr.Exprs, x)
				}
			}
			conn.AddRule(nr)
		}
	}
	return nil
}

// gone reports whether c is a chain of an interface that does not exist: the
// kernel removes such chains by itself.
func (e encoding) gone(c *chain) bool { return c.base != nil && e.missing[c.base.device] }

func (s *set) encode(conn *nftables.Conn, t *nftables.Table, id uint32) error {
	ns := &nftables.Set{Table: t, ID: id, Name: s.name, KeyType: s.types[0], Interval: s.interval}
	if s.types[0] == nftables.TypeIFName || s.types[0] == nftables.TypeMark {
		ns.KeyByteOrder = binaryutil.NativeEndian // or nft lists names as empty, and numbers the wrong way
	}
	if len(s.types) > 1 {
		var err error
		if ns.KeyType, err = nftables.ConcatSetType(s.types...); err != nil {
			return err
		}
		ns.Concatenation = true
	}
	if s.size > 0 {
		ns.Dynamic, ns.Size = true, s.size
	}
	if err := conn.AddSet(ns, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(s.elements, elementsPerMessage) {
		elements := make([]nftables.SetElement, len(part))
		for i, e := range part {
			elements[i] = nftables.SetElement{Key: e.key, KeyEnd: e.end}
		}
		if err := conn.SetAddElements(ns, elements); err != nil {
			return err
		}
	}
	return nil
}

// xtQueue is the statement `queue to num` for kernels that lack it: struct
// xt_NFQ_info_v1, the number of the queue and how many there are.
func xtQueue(num uint16) *expr.Target {
	info := xt.Unknown(append(binaryutil.NativeEndian.PutUint16(num), append(binaryutil.NativeEndian.PutUint16(1), 0, 0, 0, 0)...))
	return &expr.Target{Name: "NFQUEUE", Rev: 1, Info: &info}
}

// probe returns a batch without effect that a kernel refuses if it cannot hold
// packets in that way.
func (e encoding) probe() ([]netlink.Message, error) {
	t := &table{family: nftables.TableFamilyINet, name: "bj_probe"}
	t.add("probe", hold(0))
	out, err := e.messages(&Ruleset{tables: []*table{t}}, nil)
	if err != nil {
		return nil, err
	}
	del, err := capture(func(c *nftables.Conn) {
		c.DelTable(&nftables.Table{Family: t.family, Name: t.name})
	})
	if err != nil {
		return nil, err
	}
	end := out[len(out)-1]
	return append(out[:len(out)-1], del, end), nil
}

func capture(build func(*nftables.Conn)) (netlink.Message, error) {
	var out []netlink.Message
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		out = append(out, sent...)
		return nil, io.EOF
	}))
	if err != nil {
		return netlink.Message{}, err
	}
	build(conn)
	if err := conn.Flush(); err != nil {
		return netlink.Message{}, err
	}
	return out[1], nil
}
