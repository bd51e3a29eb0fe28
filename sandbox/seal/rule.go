package seal

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Ruleset is the compiled rules of one network namespace. It is immutable.
type Ruleset struct {
	tables     []*table
	generation uint8 // of connections; 0 if they have none
	held       bool  // rules hold packets for the relay
}

// table, set, chain and rule mirror nftables' own nouns, each with its text.
type table struct {
	family   nftables.TableFamily
	name     string
	owned    bool // it belongs to the socket that applied it
	counters []string
	sets     []*set
	chains   []*chain
}

type set struct {
	name     string
	types    []nftables.SetDatatype
	interval bool
	size     uint32 // above zero: filled by rules, up to so many
	elements []element
}

type element struct {
	text     string
	key, end []byte // end is nil where the set has no intervals
}

type chain struct {
	name  string
	base  *base // nil if only jumped to
	rules []rule
}

type base struct {
	hookName string
	hook     *nftables.ChainHook
	priority int32
	device   string
	policy   nftables.ChainPolicy
}

type rule []part

// part is one statement of a rule, as text and as what the kernel takes. The
// two are held together by a test which compares the kernel's listing of
// applied rules with its listing of the text read by nft.
type part struct {
	text  string
	exprs []expr.Any
}

// String returns the rules as a file for nft.
func (r *Ruleset) String() string {
	var b strings.Builder
	for i, t := range r.tables {
		if i > 0 {
			b.WriteByte('\n')
		}
		t.print(&b)
	}
	return b.String()
}

func (t *table) print(b *strings.Builder) {
	fmt.Fprintf(b, "table %s %s {\n", familyName(t.family), t.name)
	if t.owned {
		b.WriteString("\tflags owner\n")
	}
	for _, c := range t.counters {
		fmt.Fprintf(b, "\tcounter %s {\n\t}\n", c)
	}
	for _, s := range t.sets {
		s.print(b)
	}
	for _, c := range t.chains {
		fmt.Fprintf(b, "\n\tchain %s {\n", c.name)
		if c.base != nil {
			device := ""
			if c.base.device != "" {
				device = fmt.Sprintf(" device %q", c.base.device)
			}
			policy := "accept"
			if c.base.policy == nftables.ChainPolicyDrop {
				policy = "drop"
			}
			fmt.Fprintf(b, "\t\ttype filter hook %s%s priority %d; policy %s;\n", c.base.hookName, device, c.base.priority, policy)
		}
		for _, r := range c.rules {
			fmt.Fprintf(b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
}

func (s *set) print(b *strings.Builder) {
	var types []string
	for _, t := range s.types {
		types = append(types, t.Name)
	}
	fmt.Fprintf(b, "\n\tset %s {\n\t\ttype %s\n", s.name, strings.Join(types, " . "))
	switch {
	case s.interval:
		b.WriteString("\t\tflags interval\n")
	case s.size > 0:
		fmt.Fprintf(b, "\t\tsize %d\n\t\tflags dynamic\n", s.size)
	}
	for i, e := range s.elements {
		switch {
		case i == 0:
			b.WriteString("\t\telements = { ")
		default:
			b.WriteString(",\n\t\t\t     ")
		}
		b.WriteString(e.text)
		if i == len(s.elements)-1 {
			b.WriteString(" }\n")
		}
	}
	b.WriteString("\t}\n")
}

func (r rule) String() string {
	var words []string
	for _, p := range r {
		if p.text != "" {
			words = append(words, p.text)
		}
	}
	return strings.Join(words, " ")
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyNetdev {
		return "netdev"
	}
	return "inet"
}

// stack is an address family, and how rules speak of it.
type stack struct {
	v6       bool
	suffix   string // of names of sets
	keyword  string
	protocol byte // NFPROTO
	address  nftables.SetDatatype
	source   uint32 // offset in the network header
	dest     uint32
	echo     string // keyword of ICMP
	icmp     byte
	request  byte
	reply    byte
}

func stacks() []stack {
	return []stack{
		{suffix: "4", keyword: "ip", protocol: unix.NFPROTO_IPV4, address: nftables.TypeIPAddr,
			source: 12, dest: 16, echo: "icmp", icmp: unix.IPPROTO_ICMP, request: 8, reply: 0},
		{v6: true, suffix: "6", keyword: "ip6", protocol: unix.NFPROTO_IPV6, address: nftables.TypeIP6Addr,
			source: 8, dest: 24, echo: "icmpv6", icmp: unix.IPPROTO_ICMPV6, request: 128, reply: 129},
	}
}

func (k stack) of(a netip.Addr) bool { return a.IsValid() && a.Is6() == k.v6 }

// key is one field of a lookup: it loads itself into a register.
type key struct {
	text string
	size uint32 // bytes in registers: a multiple of four
	load func(register uint32) expr.Any
	only part // what must hold before it can be loaded
}

func metaKey(text string, k expr.MetaKey, size uint32) key {
	return key{text: text, size: size, load: func(r uint32) expr.Any { return &expr.Meta{Key: k, Register: r} }}
}

func payloadKey(text string, base expr.PayloadBase, offset, length uint32, only part) key {
	return key{text: text, size: (length + 3) &^ 3, only: only, load: func(r uint32) expr.Any {
		return &expr.Payload{DestRegister: r, Base: base, Offset: offset, Len: length}
	}}
}

func iifKey() key   { return metaKey("iifname", expr.MetaKeyIIFNAME, 16) }
func protoKey() key { return metaKey("meta l4proto", expr.MetaKeyL4PROTO, 4) }
func dportKey() key { return payloadKey("th dport", expr.PayloadBaseTransportHeader, 2, 2, part{}) }
func sportKey() key { return payloadKey("th sport", expr.PayloadBaseTransportHeader, 0, 2, part{}) }
func (k stack) saddrKey() key {
	return payloadKey(k.keyword+" saddr", expr.PayloadBaseNetworkHeader, k.source, k.address.Bytes, k.only())
}
func (k stack) daddrKey() key {
	return payloadKey(k.keyword+" daddr", expr.PayloadBaseNetworkHeader, k.dest, k.address.Bytes, k.only())
}

// only matches the family; nft leaves it out where a later match implies it.
func (k stack) only() part { return part{"", meta(expr.MetaKeyNFPROTO, []byte{k.protocol})} }

// in matches keys against a set.
func in(s string, keys ...key) part {
	var p part
	first := uint32(8) // NFT_REG32_00
	register := first
	var words []string
	for _, k := range keys {
		p.exprs = append(p.exprs, k.only.exprs...)
	}
	for _, k := range keys {
		p.exprs = append(p.exprs, k.load(register))
		register += k.size / 4
		words = append(words, k.text)
	}
	if len(keys) == 1 {
		first = 1
		p.exprs[len(p.exprs)-1] = keys[0].load(first)
	}
	p.exprs = append(p.exprs, &expr.Lookup{SourceRegister: first, SetName: s})
	p.text = fmt.Sprintf("%s @%s", strings.Join(words, " . "), s)
	return p
}

func meta(k expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: k, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func ifname(name string) []byte { return append([]byte(name), make([]byte, 16-len(name))...) }

func iif(name string) part {
	return part{fmt.Sprintf("iifname %q", name), meta(expr.MetaKeyIIFNAME, ifname(name))}
}

func oif(name string) part {
	return part{fmt.Sprintf("oifname %q", name), meta(expr.MetaKeyOIFNAME, ifname(name))}
}

// iifIndex and oifIndex match an interface that cannot be replaced by another
// of its name.
func iifIndex(index int) part {
	return part{fmt.Sprintf("iif %d", index), meta(expr.MetaKeyIIF, binaryutil.NativeEndian.PutUint32(uint32(index)))}
}

func oifIndex(index int) part {
	return part{fmt.Sprintf("oif %d", index), meta(expr.MetaKeyOIF, binaryutil.NativeEndian.PutUint32(uint32(index)))}
}

func oifIn(s string) part { return in(s, metaKey("oifname", expr.MetaKeyOIFNAME, 16)) }

func l4(protocol byte) part {
	return part{"meta l4proto " + protocolName(protocol), meta(expr.MetaKeyL4PROTO, []byte{protocol})}
}

// udpPort matches datagrams to a port.
func udpPort(port uint16) part {
	return part{fmt.Sprintf("udp dport %d", port), append(l4(unix.IPPROTO_UDP).exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)})}
}

func family(k stack) part {
	name := "ipv4"
	if k.v6 {
		name = "ipv6"
	}
	return part{"meta nfproto " + name, meta(expr.MetaKeyNFPROTO, []byte{k.protocol})}
}

func protocolName(p byte) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	}
	return "ipv6-icmp"
}

// plain matches packets whose header carries nothing but itself: no options in
// IPv4 (source routes are some), no extension headers in IPv6. Fragments have
// been put together before.
func (k stack) plain() part {
	if k.v6 {
		return in("transports", payloadKey("ip6 nexthdr", expr.PayloadBaseNetworkHeader, 6, 1, k.only()))
	}
	return part{"ip hdrlength 5", append(k.only().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x0f}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{5}})}
}

func transports() *set {
	s := &set{name: "transports", types: []nftables.SetDatatype{nftables.TypeInetProto}}
	for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6} {
		s.elements = append(s.elements, element{text: protocolName(p), key: []byte{p}})
	}
	return s
}

// opening matches the first packet of a TCP connection.
func opening() part { return tcpFlags("fin | syn | rst | ack", 0x17, "==", expr.CmpOpEq) }

// midway matches every other. Connection tracking would take it for the first
// that it happens to see of a connection.
func midway() part { return tcpFlags("fin | syn | rst | ack", 0x17, "!=", expr.CmpOpNeq) }

// notOpening matches TCP packets that cannot open a connection by themselves.
func notOpening() part { return tcpFlags("syn | ack", 0x12, "!=", expr.CmpOpNeq) }

func tcpFlags(names string, mask byte, op string, cmp expr.CmpOp) part {
	return part{fmt.Sprintf("tcp flags & (%s) %s syn", names, op), append(l4(unix.IPPROTO_TCP).exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: cmp, Register: 1, Data: []byte{0x02}})}
}

// echo matches ICMP messages of one type.
func (k stack) echoType(t byte) part {
	name := "echo-reply"
	if t == k.request {
		name = "echo-request"
	}
	return part{fmt.Sprintf("%s type %s", k.echo, name), append(l4(k.icmp).exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{t}})}
}

// state matches the state of connection tracking.
func state(name string, bit uint32) part {
	return part{"ct state " + name, []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}}
}

func notState(name string, bit uint32) part {
	return part{"ct state != " + name, []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(bit)}}}
}

// addressed matches packets to or from one address.
func (k stack) addressed(word string, offset uint32, a netip.Addr) part {
	return part{fmt.Sprintf("%s %s %s", k.keyword, word, a), append(k.only().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: k.address.Bytes},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})}
}

func (k stack) from(a netip.Addr) part { return k.addressed("saddr", k.source, a) }
func (k stack) to(a netip.Addr) part   { return k.addressed("daddr", k.dest, a) }

// ctMark matches bits of the connection mark.
func ctMark(mask, value uint32) part {
	return part{fmt.Sprintf("ct mark & 0x%08x == 0x%08x", mask, value), []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)}}}
}

func setCtMark(value uint32) part {
	return part{fmt.Sprintf("ct mark set 0x%08x", value), []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}}
}

func mark(value uint32) part {
	return part{fmt.Sprintf("meta mark 0x%08x", value), meta(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(value))}
}

// hasSocket matches what a program's socket has sent, rather than the kernel on
// its behalf, for what has been closed, or what came in from elsewhere.
func hasSocket() part {
	const none = math.MaxUint32 // is no user
	return part{fmt.Sprintf("meta skuid != %d", uint32(none)), []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(none)}}}
}

// sentIn matches what sockets made in a cgroup, or below it, send.
func sentIn(c Cgroup) part {
	level := strings.Count(c.Path, "/") + 1
	return part{fmt.Sprintf("socket cgroupv2 level %d %q", level, c.Path), []expr.Any{
		&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(level), Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint64(c.ID)}}}
}

// DSCP is six bits of the second byte in IPv4, and of the first two in IPv6.
func (k stack) dscpBits(number int) (mask, value []byte) {
	if k.v6 {
		return []byte{0x0f, 0xc0}, []byte{byte(number >> 2), byte(number << 6)}
	}
	return []byte{0x00, 0xfc}, []byte{0x00, byte(number << 2)}
}

// dscp matches packets that carry a number as their DSCP.
func (k stack) dscp(number int) part {
	mask, value := k.dscpBits(number)
	offset := uint32(0)
	if !k.v6 {
		mask, value, offset = mask[1:], value[1:], 1
	}
	return part{fmt.Sprintf("%s dscp 0x%02x", k.keyword, number), append(k.only().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(mask))},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value})}
}

// setDSCP writes a number into packets.
func (k stack) setDSCP(number int) part {
	mask, value := k.dscpBits(number)
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Len: 2}
	if !k.v6 {
		write.CsumType, write.CsumOffset = expr.CsumTypeInet, 10
	}
	return part{fmt.Sprintf("%s dscp set 0x%02x", k.keyword, number), append(k.only().exprs,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{^mask[0], ^mask[1]}, Xor: value},
		write)}
}

// forward matches packets of the side that has begun a conversation.
func forward() part {
	return part{"ct direction original", []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0}}}}
}

func setMark(value uint32) part {
	return part{fmt.Sprintf("meta mark set 0x%08x", value), []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}}
}

func count(name string) part {
	return part{"counter name " + quoted(name), []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}}}
}

func quoted(s string) string { return `"` + s + `"` }

func accept() part { return part{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}} }

func drop() part { return part{"drop", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}} }

// back goes on behind the jump that led here, and call is that jump.
func back() part { return part{"return", []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}} }

func call(name string) part {
	return part{"jump " + name, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: name}}}
}

func toChain(name string) part {
	return part{"goto " + name, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}}}
}

// snapLength is how much of a dropped packet is looked at: the headers.
const snapLength = 128

func log(group uint16, reason string) part {
	return part{fmt.Sprintf("log prefix %q group %d snaplen %d queue-threshold 1", reason, group, snapLength), []expr.Any{&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD,
		Group: group, Snaplen: snapLength, QThreshold: 1, Data: []byte(reason)}}}
}

// dark drops, counts and logs.
func dark(group uint16, reason string) rule {
	return rule{count(CounterDropped), log(group, reason), drop()}
}

func reset() part {
	return part{"reject with tcp reset", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

func (k stack) tproxy(port uint16) part {
	return part{fmt.Sprintf("tproxy %s to :%d", k.keyword, port), []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.TProxy{Family: k.protocol, TableFamily: byte(nftables.TableFamilyINet), RegPort: 1}}}
}

// hold hands the packet to the relay, which decides.
func hold(queue uint16) part {
	return part{fmt.Sprintf("queue to %d", queue), []expr.Any{&expr.Queue{Num: queue, Total: 1}}}
}

func (t *table) chain(name string) *chain {
	i := slices.IndexFunc(t.chains, func(c *chain) bool { return c.name == name })
	if i >= 0 {
		return t.chains[i]
	}
	c := &chain{name: name}
	t.chains = append(t.chains, c)
	return c
}

func (t *table) add(name string, parts ...part) {
	c := t.chain(name)
	c.rules = append(c.rules, parts)
}
