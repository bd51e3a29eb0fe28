package hub

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"bj/sandbox"
	"bj/sandbox/gate"
	"bj/sandbox/seal"
)

// Probe makes a hub without machines in the network namespace of the calling
// process, which must be new and its own, and says of each thing that a hub
// needs of the kernel what came of using it. What it makes ends with the process.
func Probe(ctx context.Context) []sandbox.Part {
	links := sandbox.Part{Name: "links", Text: "machines hang on links in network namespaces", Vital: true}
	n, err := NewNet()
	if err == nil {
		err = needs(n.up())
	}
	links = links.With(err, "some were made")
	filter := sandbox.Part{Name: "nftables", Text: "the seal is made of its tables", Vital: true}
	relay := sandbox.Part{Name: "relay", Text: "what recipes allow is held until its other side answers", Vital: true}
	g := &Gateway{hub: n}
	s := &sealer{generation: 1}
	table, err := g.probeRules(s)
	if filter = filter.With(needs(err), "some were put in force"); err != nil {
		relay.Err = errors.New("it was not tried, without nftables")
		return []sandbox.Part{links, filter, relay}
	}
	outside := netip.MustParsePrefix("192.0.2.1/32") // for documentation: nobody's
	p := sandbox.Policy{Allows: []sandbox.Allow{{Protocol: "tcp", Prefix: outside, First: 443, Last: 443}}}
	relay = relay.With(needs(g.probeRelay(p, s, table)), "one was opened")
	return []sandbox.Part{links, filter, relay}
}

// probeRules puts the rules of a hub and of a machine in force, side by side,
// and listens for what they drop.
func (g *Gateway) probeRules(s *sealer) (*seal.Table, error) {
	rules, _, err := g.compile(s.policy, s)
	if err != nil {
		return nil, err
	}
	table, err := seal.Apply(0, rules)
	if err != nil {
		return nil, fmt.Errorf("the hub: %w", err)
	}
	rules, err = seal.CompileMachine(s.policy, seal.Inside{Machine: seal.Machine{Name: "probe", Interface: witnessIn, V4: Addr4, V6: Addr6}, Uplink: WitnessOut, Group: logGroup})
	if err != nil {
		return nil, err
	}
	if _, err := seal.Apply(0, rules); err != nil {
		return nil, fmt.Errorf("a machine: %w", err)
	}
	return table, g.watch("", 0, s)
}

// probeRelay opens a relay, and puts rules in force that hold packets for it.
func (g *Gateway) probeRelay(p sandbox.Policy, s *sealer, table *seal.Table) error {
	relay, err := gate.Open(g.relayConfig(p), p)
	if err != nil {
		return err
	}
	defer relay.Close()
	s.generation++
	rules, _, err := g.compile(p, s)
	if err != nil {
		return err
	}
	return table.Replace(rules)
}

// needs adds to an error of the hub what mends it, where it is the kernel that
// lacks something.
func needs(err error) error {
	var e *sandbox.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	lacks := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT)
	said := func(part string) bool { return strings.Contains(err.Error(), part) }
	module := func(names, options string) string {
		return "modprobe " + names + "; where there is no such module, run a kernel that has it (" + options + ")"
	}
	hint := ""
	switch {
	case errors.Is(err, seal.ErrNoHold):
		hint = module("-a nft_queue nfnetlink_queue", "CONFIG_NFT_QUEUE, CONFIG_NETFILTER_NETLINK_QUEUE")
	case errors.Is(err, os.ErrPermission):
		hint = "bj has no rights in its own network namespace, as in most containers: run it on the host, or in a container with --privileged"
	case !lacks:
		return err
	case said("witness link") || said("linking "):
		hint = module("veth", "CONFIG_VETH")
	case said("routing rule"):
		hint = "run a kernel with policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
	case said(Addr6.String()) || said("ipv6"):
		hint = "machines have IPv6 addresses: boot without ipv6.disable=1, and sysctl -w net.ipv6.conf.default.disable_ipv6=0"
	case said("log of dropped packets"):
		hint = module("-a nfnetlink_log nft_log", "CONFIG_NETFILTER_NETLINK_LOG, CONFIG_NFT_LOG")
	case said("relay"):
		hint = module("-a nfnetlink_queue nft_tproxy", "CONFIG_NETFILTER_NETLINK_QUEUE, CONFIG_NFT_TPROXY")
	default:
		hint = module("-a nf_tables nft_ct nft_log nft_reject_inet", "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_CT, CONFIG_NFT_LOG, CONFIG_NFT_REJECT")
	}
	return &sandbox.Error{Code: sandbox.CodeLease, Err: err, Hint: hint}
}
