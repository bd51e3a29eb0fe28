package sandboxtest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkAttacks change links, addresses, routes and namespaces.
func linkAttacks() []attack {
	return []attack{
		{name: "another's addresses", script: `
ip addr add 198.18.0.11/32 dev eth0
ip -6 addr add fd62:6a::11/128 dev eth0 nodad
ip addr add 198.18.255.254/32 dev lo
ip -6 addr add fd62:6a::ffff/128 dev lo nodad
ip addr add 203.0.113.1/24 dev eth0
ip addr add 192.0.2.10/24 dev eth0
ip link set eth0 down; ip link set eth0 address $(sed 's/..$/01/' /sys/class/net/eth0/address); ip link set eth0 up
ip route add default via 198.18.255.254 dev eth0 onlink src 198.18.0.11
ip neigh replace 198.18.255.254 lladdr 02:62:6a:01:00:00 dev eth0
`, code: (*attacker).reload},
		{name: "another's hardware address", script: `
ip link set eth0 down; ip link set eth0 address 02:62:6a:01:00:00; ip link set eth0 up; ip link set eth0 promisc on; ip link set eth0 allmulticast on; ip link set eth0 mtu 65535; ip link set eth0 txqueuelen 0
ip addr add 198.18.0.10/32 dev eth0; ip route add 198.18.255.254 dev eth0; ip route add default via 198.18.255.254
`, code: (*attacker).reload},
		{name: "routes", script: `
ip rule add pref 1 lookup main
ip rule del pref 0
ip -6 rule del pref 0
ip route flush table local
ip -6 route flush table local
ip route replace 127.0.0.0/8 dev eth0
ip route replace 198.18.0.10/32 via 198.18.255.254 dev eth0 onlink
ip route replace 203.0.113.0/24 via 198.18.0.11 dev eth0 onlink
ip route replace 198.18.0.11/32 dev eth0 scope link
ip route add local 192.0.2.0/24 dev lo
ip route replace default dev eth0
ip -6 route replace ::1/128 via fd62:6a::ffff dev eth0
ip route replace 192.0.2.0/24 encap seg6 mode encap segs fd62:6a::11 dev eth0
ip route replace 192.0.2.0/24 encap ip id 1 dst 198.18.0.11 dev eth0
`},
		{name: "settings", script: `
for f in all default lo eth0; do for s in route_localnet accept_local forwarding accept_source_route accept_redirects send_redirects proxy_arp arp_accept; do echo 1 > /proc/sys/net/ipv4/conf/$f/$s; done; echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; for s in forwarding accept_ra accept_source_route proxy_ndp accept_redirects; do echo 2 > /proc/sys/net/ipv6/conf/$f/$s; echo 1 > /proc/sys/net/ipv6/conf/$f/$s; done; done
echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind; echo 1 > /proc/sys/net/ipv4/ip_early_demux; echo 1 > /proc/sys/net/ipv4/conf/all/drop_gratuitous_arp
echo 0 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal; echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal; echo 1 > /proc/sys/net/netfilter/nf_conntrack_helper
echo 3 > /proc/sys/net/ipv4/tcp_fastopen; echo 2 > /proc/sys/net/ipv4/tcp_syncookies; echo 1 > /proc/sys/net/ipv4/tcp_l3mdev_accept; echo 1 > /proc/sys/net/ipv4/udp_l3mdev_accept
echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
ip route add local 127.0.0.0/8 dev eth0
`},
		{name: "links of every kind", script: links()},
		{name: "links over the uplink", script: `
for m in bridge private vepa passthru source; do ip link add v$m link eth0 address $(sed 's/..$/01/' /sys/class/net/eth0/address) type macvlan mode $m; ip addr add 198.18.0.11/32 dev v$m; ip link set v$m up; ip link del v$m; done
ip link add mv link eth0 type macvlan mode bridge; ip link set mv up; ip addr add 198.18.0.77/16 dev mv
ip link add iv link eth0 type ipvlan mode l2; ip link set iv up; ip addr add 198.18.0.78/16 dev iv
ip link add vl link eth0 type vlan id 7; ip link set vl up; ip addr add 10.7.0.1/24 dev vl
ip link add vx type vxlan id 7 remote 198.18.0.11 dstport 9000 dev eth0; ip link set vx up; ip addr add 10.8.0.1/24 dev vx; ping -c1 -W1 10.8.0.2
ip link add vy type vxlan id 8 group 239.1.1.1 dstport 4789 dev eth0; ip link set vy up; ip addr add 10.10.0.1/24 dev vy; ping -c1 -W1 10.10.0.2
ip link add br0 type bridge; ip link set eth0 master br0; ip link set br0 up; ip addr add 198.18.0.10/32 dev br0; ip route add default dev br0
`, code: (*attacker).everyLink},
		{name: "an uplink of its own", script: `
ip addr add 198.18.0.10/32 dev lo; ip -6 addr add fd62:6a::10/128 dev lo nodad
ip link set eth0 down; ip link set eth0 name up0
ip link add eth0 type veth peer name e1; ip link set eth0 up; ip link set e1 up
ip link set up0 up
for i in eth0 e1 all; do echo 0 > /proc/sys/net/ipv4/conf/$i/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/$i/accept_local; done
`, code: (*attacker).fakeUplink},
		{name: "a device in user space", code: (*attacker).tun},
		{name: "child namespaces", script: `
unshare -n sh -c 'ip link set lo up; ip addr'
ip link add c0 type veth peer name c1; ip link set c0 up; ip addr add 10.50.0.1/24 dev c0; echo 1 > /proc/sys/net/ipv4/ip_forward
nft 'add table ip n; add chain ip n p { type nat hook postrouting priority 100; }; add rule ip n p masquerade'
unshare -n sh -c 'echo $$ > /tmp/child; while ! ip link show c1 > /dev/null 2>&1; do sleep 0.01; done; ip link set c1 up; ip addr add 10.50.0.2/24 dev c1; ip route add default via 10.50.0.1; for a in 198.18.0.11 198.18.255.254 203.0.113.1 192.0.2.1; do ping -c1 -W1 $a; done' & while ! test -s /tmp/child; do sleep 0.01; done; ip link set c1 netns $(cat /tmp/child); wait
unshare -Urn true
unshare -Urnm sh -c 'mount -t sysfs s /sys; ls /sys/class/net'
unshare -Urnpf --mount-proc ip link
`},
		{name: "the other end of the uplink", code: (*attacker).linkSpaces},
		{name: "other namespaces", script: `
for p in /proc/[0-9]*; do for n in net mnt pid user uts ipc cgroup time; do nsenter --$n=$p/ns/$n true; done; done 2>&1 | tail -1
nsenter -t 1 -a true
ls -l /proc/*/ns /proc/*/task/*/ns
for p in $(seq 1 400); do nsenter -t $p -n true && echo $p; done 2>/dev/null | tail -3
unshare -Ur nsenter -t 1 -U true
unshare -Ur nsenter -t 1 -n ip link
`},
	}
}

// reload looks at the uplink again, which the script has changed.
func (a *attacker) reload() {
	if link, err := net.InterfaceByName("eth0"); err == nil {
		a.link = link
	}
}

// everyLink sends through every link that there is.
func (a *attacker) everyLink() {
	all, err := net.Interfaces()
	if err != nil {
		panic(err)
	}
	for _, link := range all {
		a.link = &link
		a.frames()
		a.forged()
		for _, to := range []netip.Addr{a.peer4, a.hub4, netip.MustParseAddr("203.0.113.1"), a.peer6} {
			a.datagram(netip.AddrPortFrom(to, darkPort), []byte(a.marker), func(fd int) error { return unix.BindToDevice(fd, link.Name) })
		}
	}
	a.reload()
}

// links makes one of each kind.
func links() string {
	var b strings.Builder
	for i, kind := range []string{
		"dummy", "bridge", "bond", "team", "ifb", "veth", "vrf table 9", "nlmon", "netdevsim", "vcan", "vxcan", "wireguard", "macsec link eth0",
		"vxlan id 1 remote 198.18.0.11 dstport 4789", "geneve id 1 remote 198.18.0.11", "gtp role sgsn", "bareudp dstport 6635 ethertype ipv4",
		"gre remote 198.18.0.11 local 198.18.0.10", "gretap remote 198.18.0.11 local 198.18.0.10", "erspan remote 198.18.0.11 local 198.18.0.10 seq key 1",
		"ipip remote 198.18.0.11 local 198.18.0.10", "sit remote 198.18.0.11 local 198.18.0.10", "vti remote 198.18.0.11 local 198.18.0.10 key 1", "xfrm dev eth0 if_id 1",
		"ip6tnl remote fd62:6a::11 local fd62:6a::10", "ip6gre remote fd62:6a::11 local fd62:6a::10", "ip6gretap remote fd62:6a::11 local fd62:6a::10", "vti6 remote fd62:6a::11 local fd62:6a::10",
		"hsr slave1 eth0 slave2 lo", "batadv", "amt mode gateway", "rmnet", "ipoib", "lowpan", "ppp", "can", "virt_wifi", "ovpn", "pfcp", "netkit",
	} {
		fmt.Fprintf(&b, "ip link add x%d type %s && ip addr add 10.%d.0.1/24 dev x%d && ip link set x%d up && ping -c1 -W1 -I x%d 10.%d.0.2\n", i, kind, 100+i, i, i, i, 100+i)
	}
	b.WriteString("ip tuntap add tap0 mode tap; ip link set tap0 up; ip link add br1 type bridge; ip link set tap0 master br1; ip link set br1 up\n")
	return b.String()
}

// fakeUplink sends to the machine's own dark ports, through a link that bears
// the uplink's name.
func (a *attacker) fakeUplink() {
	link, err := net.InterfaceByName("e1")
	if err != nil {
		panic(err)
	}
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		panic(err)
	}
	payload := []byte(a.marker)
	for _, src := range []netip.Addr{netip.MustParseAddr("10.9.9.9"), a.peer4, a.hub4} {
		for _, dst := range []netip.Addr{a.own4, netip.MustParseAddr("127.0.0.1")} {
			a.try(fmt.Sprintf("%s -> %s through a link of its own", src, dst), func() error {
				return a.sendFrames(link, frame(eth.HardwareAddr, link.HardwareAddr, unix.ETH_P_IP, udp4(src, dst, 1234, darkPort, payload, nil)),
					frame(eth.HardwareAddr, link.HardwareAddr, unix.ETH_P_IP, udp4(src, dst, openUDP, darkPort, payload, nil)))
			})
		}
	}
	if up, err := net.InterfaceByName("up0"); err == nil {
		a.link = up
	}
}

// tun makes a device whose other end is this program.
func (a *attacker) tun() {
	a.run("mkdir -p /dev/net; mknod /dev/net/tun c 10 200; modprobe tun")
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	ifr, err := unix.NewIfreq("tun0")
	if err != nil {
		panic(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr); err != nil {
		panic(err)
	}
	a.run("ip link set tun0 up; ip addr add 10.60.0.1/24 dev tun0; echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter")
	for _, dst := range []netip.Addr{a.own4, a.peer4, a.hub4, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("203.0.113.1")} {
		for _, src := range []netip.Addr{netip.MustParseAddr("10.60.0.2"), a.own4, a.peer4} {
			f.Write(udp4(src, dst, openUDP, darkPort, []byte(a.marker), nil))
		}
	}
}

// linkSpaces asks the kernel to act in the namespace where the other end of the
// uplink is, which it knows by a number.
func (a *attacker) linkSpaces() {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		panic(err)
	}
	for id := range 4 {
		for _, x := range []struct {
			what string
			req  func() *netlinkRequest
		}{
			{"list links", func() *netlinkRequest {
				return newRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP).int32(46, int32(id)) // IFLA_TARGET_NETNSID
			}},
			{"list addresses", func() *netlinkRequest {
				return newRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP).int32(10, int32(id)) // IFA_TARGET_NETNSID
			}},
			{"make a link", func() *netlinkRequest {
				return newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL).int32(46, int32(id)).string(3, "evil").nested(18, 1, "dummy")
			}},
			{"move the uplink there", func() *netlinkRequest {
				return newRequest(unix.RTM_NEWLINK, 0).index(link.Attrs().Index).int32(46, int32(id))
			}},
			{"a pair that ends there", func() *netlinkRequest {
				return newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL).string(3, "evil2").int32(37, int32(id)).nested(18, 1, "veth") // IFLA_LINK_NETNSID
			}},
			{"change the other end", func() *netlinkRequest {
				return newRequest(unix.RTM_NEWLINK, 0).index(link.Attrs().ParentIndex).int32(46, int32(id)).up()
			}},
			{"delete the other end", func() *netlinkRequest {
				return newRequest(unix.RTM_DELLINK, 0).index(link.Attrs().ParentIndex).int32(46, int32(id))
			}},
		} {
			a.try(fmt.Sprintf("%s %d", x.what, id), func() error {
				n, err := x.req().send()
				if err == nil && strings.HasPrefix(x.what, "list") && n > 0 {
					fmt.Printf("BREACH %s in namespace %d: %d answers\n", x.what, id, n)
				}
				return err
			})
		}
	}
	// By process and by descriptor.
	for _, pid := range []int{0, 1, 2, 3, os.Getppid()} {
		a.try(fmt.Sprintf("move the uplink to process %d", pid), func() error { return netlink.LinkSetNsPid(link, pid) })
	}
}
