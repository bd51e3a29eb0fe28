package hub

import (
	"fmt"
	"net/netip"
	"strings"

	"bj/sandbox"
)

// HostsFile is how the machines of an environment know each other.
func HostsFile(machines []sandbox.MachineSpec) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, addr := range []func(sandbox.MachineSpec) netip.Addr{
		func(m sandbox.MachineSpec) netip.Addr { return m.V4 },
		func(m sandbox.MachineSpec) netip.Addr { return m.V6 },
	} {
		for _, m := range machines {
			fmt.Fprintf(&b, "%s\t%s\n", addr(m), m.Name)
		}
	}
	return b.String()
}
