package sandboxtest

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ruleAttacks change the packet filter of the machine's own namespace.
func ruleAttacks() []attack {
	return []attack{
		{name: "nothing"},
		{name: "rules flushed", script: `
nft flush ruleset
nft list tables | while read t f n; do nft delete table $f $n; nft flush table $f $n; nft destroy table $f $n; done
nft add table inet bj_machine '{ flags dormant; }'
nft add table inet bj_machine '{ flags owner; }'
nft add table inet bj_machine '{ flags owner, persist; }'
nft insert rule inet bj_machine input accept
nft insert rule inet bj_machine loopback accept
nft add chain inet bj_machine input '{ policy accept; }'
nft flush chain inet bj_machine input
nft delete chain inet bj_machine input
for h in $(seq 1 200); do nft delete rule inet bj_machine input handle $h; done 2>/dev/null
nft flush set inet bj_machine internal
iptables -F; iptables -P INPUT ACCEPT; iptables -P OUTPUT ACCEPT
ip6tables -F
iptables-legacy -F
`, code: (*attacker).stealTables},
		{name: "rules that accept", script: `
for f in ip ip6 inet; do for h in prerouting input forward output postrouting; do nft "add table $f x; add chain $f x a$h { type filter hook $h priority -2147483648; policy accept; }; add rule $f x a$h accept; add chain $f x z$h { type filter hook $h priority 2147483647; policy accept; }; add rule $f x z$h accept"; done; done
nft 'add table inet y; add chain inet y p { type filter hook prerouting priority -300; }; add chain inet y o { type filter hook output priority -300; }; add rule inet y p notrack; add rule inet y o notrack'
for i in lo eth0; do nft "add table netdev n$i; add chain netdev n$i i { type filter hook ingress device $i priority -500; policy accept; }; add rule netdev n$i i accept; add chain netdev n$i e { type filter hook egress device $i priority -500; policy accept; }"; done
`},
		{name: "marks", script: `
for m in 1 2 3 4; do nft "add table inet m$m; add chain inet m$m o { type route hook output priority 2147483646; }; add rule inet m$m o meta mark set $m; add chain inet m$m p { type filter hook prerouting priority -1; }; add rule inet m$m p meta mark set $m"; done
nft 'add table inet c; add chain inet c o { type filter hook output priority 0; }; add rule inet c o ct mark set 0x01000000; add chain inet c p { type filter hook prerouting priority 0; }; add rule inet c p ct mark set 0x01000000; add chain inet c i { type filter hook input priority 0; }; add rule inet c i ct mark set 0x01800001'
`},
		{name: "address translation", script: `
nft 'add table inet n; add chain inet n o { type nat hook output priority -100; }; add rule inet n o tcp dport 7000 redirect to :9000; add rule inet n o udp dport 7001 redirect to :9000'
nft 'add chain inet n p { type nat hook prerouting priority -100; }; add rule inet n p tcp dport 7000 redirect to :9000; add rule inet n p udp dport 7001 redirect to :9000'
nft 'add chain inet n s { type nat hook postrouting priority 100; }; add rule inet n s udp dport 9000 snat ip to 127.0.0.1:7001; add rule inet n s tcp dport 9000 snat ip to 127.0.0.1:7000'
nft 'add chain inet n i { type nat hook input priority 2147483647; }; add rule inet n i udp dport 9000 snat ip to 127.0.0.1:7001'
nft 'add table ip t; add chain ip t o { type nat hook output priority -101; }; add rule ip t o ip daddr 192.0.2.10 tcp dport 443 dnat to 198.18.0.11:9000; add rule ip t o ip daddr 192.0.2.1 dnat to 198.18.0.11'
nft 'add chain ip t s { type nat hook postrouting priority 101; }; add rule ip t s oif eth0 snat to 198.18.0.11'
`},
		{name: "payload changed", script: `
nft 'add table inet m; add chain inet m o { type filter hook output priority 2147483647; }; add rule inet m o udp dport 7001 udp dport set 9000; add rule inet m o tcp dport 7000 tcp dport set 9000'
nft 'add chain inet m q { type filter hook postrouting priority 2147483647; }; add rule inet m q udp dport 7001 udp dport set 9000; add rule inet m q tcp dport 7000 tcp dport set 9000'
nft 'add chain inet m p { type filter hook prerouting priority -2147483648; }; add rule inet m p udp dport 7001 udp dport set 9000; add rule inet m p tcp dport 7000 tcp dport set 9000'
nft 'add chain inet m i { type filter hook input priority 2147483647; }; add rule inet m i udp dport 7001 udp dport set 9000; add rule inet m i tcp dport 7000 tcp dport set 9000'
for i in lo eth0; do for h in ingress egress; do nft "add table netdev m$i$h; add chain netdev m$i$h c { type filter hook $h device $i priority 0; }; add rule netdev m$i$h c udp dport 7001 udp dport set 9000; add rule netdev m$i$h c tcp dport 7000 tcp dport set 9000"; done; done
nft 'add table ip a; add chain ip a q { type filter hook postrouting priority 2147483647; }; add rule ip a q ip daddr 192.0.2.10 ip daddr set 198.18.0.11; add rule ip a q ip daddr 198.18.0.11 udp dport 7001 udp dport set 9000'
`},
		{name: "socket found before the rules", script: `
nft 'add table inet m; add chain inet m q { type filter hook postrouting priority 2147483647; }; add rule inet m q udp sport 5555 udp dport 7001 udp dport set 9001'
nft 'add chain inet m i { type filter hook input priority 2147483646; }; add rule inet m i udp sport 5555 udp dport 9001 udp dport set 7001'
`, code: (*attacker).earlyDemux},
		{name: "copies and forwards", script: `
nft 'add table netdev f; add chain netdev f i { type filter hook ingress device lo priority 0; }; add rule netdev f i fwd to eth0'
nft 'add table netdev g; add chain netdev g e { type filter hook egress device lo priority 0; }; add rule netdev g e dup to eth0; add rule netdev g e fwd to eth0'
nft 'add table netdev h; add chain netdev h e { type filter hook egress device eth0 priority 0; }; add rule netdev h e dup to lo'
nft 'add table ip d; add chain ip d o { type filter hook output priority 0; }; add rule ip d o dup to 198.18.0.11 device eth0; add rule ip d o dup to 198.18.255.254'
nft 'add table ip6 d; add chain ip6 d o { type filter hook output priority 0; }; add rule ip6 d o dup to fd62:6a::11 device eth0'
`},
		{name: "transparent proxies", script: `
ip rule add fwmark 77 lookup 77; ip route add local default dev lo table 77
nft 'add table inet t; add chain inet t p { type filter hook prerouting priority -150; }; add rule inet t p udp dport 7001 tproxy ip to :9000 meta mark set 77; add rule inet t p tcp dport 7000 tproxy ip to :9000 meta mark set 77'
`},
		{name: "connections made up", code: (*attacker).forgeConntrack},
		{name: "traffic control", script: `
tc qdisc add dev lo clsact
tc filter add dev lo egress protocol all u32 match u32 0 0 action mirred ingress redirect dev eth0
`, code: func(a *attacker) { a.loopVolley(); a.run("tc qdisc del dev lo clsact") }},
		{name: "traffic control outwards", script: `
tc qdisc add dev lo clsact; tc qdisc add dev eth0 clsact
tc filter add dev lo egress protocol all u32 match u32 0 0 action mirred egress mirror dev eth0
tc filter add dev eth0 egress protocol all u32 match u32 0 0 action mirred ingress mirror dev lo
tc filter add dev eth0 ingress protocol all u32 match u32 0 0 action mirred egress mirror dev eth0
`},
	}
}

// loopVolley sends to dark ports of the machine's own addresses.
func (a *attacker) loopVolley() {
	payload := []byte(a.marker)
	for _, addr := range []netip.Addr{a.own4, a.own6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		a.datagram(netip.AddrPortFrom(addr, darkPort), payload, nil)
	}
	a.connects([]string{netip.AddrPortFrom(a.own4, darkPort).String(), netip.AddrPortFrom(a.own6, darkPort).String()})
}

// stealTables tries to become the owner of tables through a socket with the
// port number of the one that owns them, and to delete them by handle.
func (a *attacker) stealTables() {
	out, _ := exec.Command("nft", "-a", "list", "tables").CombinedOutput()
	fmt.Printf("tables: %q\n", out)
	for port := range uint32(2000) {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
		if err != nil {
			return
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port + 1}); err == nil {
			unix.Sendto(fd, deleteTables(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
		unix.Close(fd)
	}
}

// deleteTables is a batch that deletes all tables of all families.
func deleteTables() []byte {
	msg := func(typ, flags uint16, family byte, res uint16) []byte {
		b := make([]byte, 20)
		le := func(at int, v uint16) { b[at], b[at+1] = byte(v), byte(v>>8) }
		b[0] = 20
		le(4, typ)
		le(6, flags)
		b[16] = family
		b[18], b[19] = byte(res>>8), byte(res)
		return b
	}
	const begin, end, delTable = 0x10, 0x11, 10<<8 | 2
	b := msg(begin, unix.NLM_F_REQUEST, 0, 10)
	b = append(b, msg(delTable, unix.NLM_F_REQUEST, 0, 0)...)
	return append(b, msg(end, unix.NLM_F_REQUEST, 0, 10)...)
}

// earlyDemux lets the kernel find the receiving socket by the real port, before
// the rules are shown another one.
func (a *attacker) earlyDemux() {
	server, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9001}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5555})
	if err != nil {
		panic(err)
	}
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5555})
	if err != nil {
		panic(err)
	}
	for range 3 {
		client.WriteTo([]byte(a.marker), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: openUDP})
	}
	server.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	buf := make([]byte, 100)
	if n, err := server.Read(buf); err == nil {
		fmt.Printf("heard udp on 127.0.0.1:9001 (dark) %q\n", buf[:n])
	}
}

// forgeConntrack writes connections into connection tracking that never were,
// as which dark packets then pass for answers.
func (a *attacker) forgeConntrack() {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		panic(err)
	}
	defer h.Close()
	for _, ip := range []net.IP{net.IPv4(127, 0, 0, 1).To4(), a.own4.AsSlice(), a.peer4.AsSlice()} {
		src := ip
		if ip.Equal(a.peer4.AsSlice()) {
			src = a.own4.AsSlice()
		}
		for generation := uint32(0); generation < 4; generation++ {
			sport := uint16(openUDP)
			local := &net.UDPAddr{IP: net.IP(src), Port: int(sport)}
			flow := &netlink.ConntrackFlow{
				FamilyType: unix.AF_INET,
				Forward:    netlink.IPTuple{SrcIP: ip, DstIP: src, SrcPort: darkPort, DstPort: sport, Protocol: unix.IPPROTO_UDP},
				Reverse:    netlink.IPTuple{SrcIP: src, DstIP: ip, SrcPort: sport, DstPort: darkPort, Protocol: unix.IPPROTO_UDP},
				Mark:       generation<<24 | 1,
				TimeOut:    600,
			}
			a.try(fmt.Sprintf("a made-up connection %s:%d -> %s:%d", ip, darkPort, src, sport), func() error {
				h.ConntrackTableFlush(netlink.ConntrackTable)
				return h.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, flow)
			})
			c, err := net.ListenUDP("udp4", local)
			if err != nil {
				continue
			}
			for range 3 {
				c.WriteTo([]byte(a.marker), &net.UDPAddr{IP: ip, Port: darkPort})
			}
			c.Close()
		}
	}
}
