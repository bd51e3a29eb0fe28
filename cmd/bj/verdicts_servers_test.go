package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The servers of the lab that are asked for more than an address. All of them
// are started on the lab's thread.

// labNames are the names that the lab's resolver knows.
var labNames = map[string]string{"web.lab.internal.": "192.0.2.10", "far.lab.internal.": labFar}

// labFar is the address of another host.
const labFar = "203.0.113.10"

// serveNames answers for labNames: at 192.0.2.10, and in the place of whom this
// host asks for names.
func (l *lab) serveNames() {
	lo, err := netlink.LinkByName("lo")
	l.must("finding lo", err)
	text, err := os.ReadFile("/etc/resolv.conf")
	l.must("reading whom this host asks for names", err)
	at := []string{"192.0.2.10"}
	for _, m := range regexp.MustCompile(`(?m)^nameserver\s+([0-9a-fA-F.:]+)\s*$`).FindAllSubmatch(text, -1) {
		if a, err := netip.ParseAddr(string(m[1])); err == nil && !slices.Contains(at, a.String()) {
			at = append(at, a.String())
			if !a.IsLoopback() && lo != nil {
				l.must("adding "+a.String(), netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}))
			}
		}
	}
	for _, a := range at {
		c, err := net.ListenPacket("udp", net.JoinHostPort(a, "53"))
		l.must("listening for questions", err)
		if err != nil {
			continue
		}
		s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(l.answer)}
		go s.ActivateAndServe()
		l.t.Cleanup(func() { c.Close() })
	}
}

func (l *lab) answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	address, known := labNames[strings.ToLower(q.Question[0].Name)]
	if !known {
		m.Rcode = dns.RcodeNameError
	} else if q.Question[0].Qtype == dns.TypeA {
		l.note("dns " + strings.TrimSuffix(q.Question[0].Name, "."))
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.ParseIP(address)}}
	}
	w.WriteMsg(m)
}

// serveWeb answers every request at 192.0.2.10:8080, and every hello of TLS at
// port 8443.
func (l *lab) serveWeb() {
	plain, err := net.Listen("tcp", "192.0.2.10:8080")
	l.must("listening", err)
	sealed, err2 := net.Listen("tcp", "192.0.2.10:8443")
	l.must("listening", err2)
	if errors.Join(err, err2) != nil {
		return
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.note("http " + r.Method + " " + r.URL.Path)
		fmt.Fprintf(w, "production http %s %s\n", r.Method, r.URL.Path)
	})}
	go s.Serve(plain)
	l.t.Cleanup(func() { s.Close() })
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	l.must("making a key", err)
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	l.must("making a certificate", err)
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		l.note("tls " + h.ServerName)
		return nil, nil
	}}
	go func() {
		for {
			c, err := sealed.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); tls.Server(c, config).HandshakeContext(l.t.Context()) }()
		}
	}()
	l.t.Cleanup(func() { sealed.Close() })
}

// serveFar makes another host, in a network of its own, that greets at port 7000.
// The network lives as long as its listening socket.
func (l *lab) serveFar() {
	type made struct {
		ns  int
		s   net.Listener
		err error
	}
	ready, linked := make(chan made, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its network
		m := made{ns: -1}
		if m.err = unix.Unshare(unix.CLONE_NEWNET); m.err == nil {
			m.ns, m.err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ready <- m
		<-linked
		if m.err == nil {
			m.err = raise("far1", labFar+"/24")
		}
		if m.err == nil {
			m.s, m.err = net.Listen("tcp", labFar+":7000")
		}
		ready <- m
	}()
	m := <-ready
	l.must("making another network", m.err)
	if m.err == nil {
		l.must("linking it", netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far0"}, PeerName: "far1", PeerNamespace: netlink.NsFd(m.ns)}))
		unix.Close(m.ns)
		l.must("having no IPv6 there", os.WriteFile("/proc/sys/net/ipv6/conf/far0/disable_ipv6", []byte("1"), 0o644))
		l.must("raising far0", raise("far0", "203.0.113.1/24"))
	}
	close(linked)
	if m = <-ready; m.err != nil {
		l.must("serving far away", m.err)
		return
	}
	l.accept(m.s, "tcp "+labFar+" 7000")
}

// raise gives a link of this thread's network an address, and takes it up.
func raise(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
}
