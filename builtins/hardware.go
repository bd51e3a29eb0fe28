package builtins

import (
	"fmt"
	"net/netip"
	"path"
	"strings"

	"go.starlark.net/starlark"

	"bj/fleet"
)

func hardware(c *call) starlark.Value {
	h := &hardwareValue{at: c.place()}
	h.hw = fleet.Hardware{
		Name:   c.required("name"),
		Pos:    c.start(),
		CPUs:   0,
		Memory: 0,
	}
	count := c.integer("count", 1, 1, 1000)
	h.hw.CPUs = c.integer("cpus", 1, 1, 1024)
	h.hw.Memory = c.size("memory", 256<<20)
	h.hw.Disk = c.size("disk", 1<<30)
	h.hw.Image = c.image("image")
	addresses := c.addresses("addresses")
	h.hw.Doc = strings.TrimSpace(c.str("doc"))
	if h.hw.Name != "" {
		longest := h.hw.Name
		if count > 1 {
			longest = fmt.Sprintf("%s-%d", h.hw.Name, count-1)
		}
		if err := fleet.CheckMachineName(longest); err != nil {
			c.syntaxError("name", nil, "name", fleet.CheckMachineName(longest))
		}
	}
	if len(addresses) > 0 && len(addresses) != count && !c.bad {
		c.errorf("addresses", nil, "address", "give one address for each machine, or none", "%d addresses for %d machines", len(addresses), count)
	}
	if c.state.machines+count > maxMachines {
		c.errorf("count", nil, "range", "", "more than %d machines in one file", maxMachines)
		count = 1
	}
	h.hw.Machines = make([]fleet.Machine, count)
	h.machines = make([]*machineValue, count)
	for i := range h.hw.Machines {
		m := &h.hw.Machines[i]
		m.Index, m.Name = i, h.hw.Name
		if count > 1 {
			m.Name = fmt.Sprintf("%s-%d", h.hw.Name, i)
		}
		m.V4, m.V6 = defaultAddresses(c.state.machines)
		c.state.machines++
		m.Address = m.V4
		if i < len(addresses) {
			m.Address, m.Declared = addresses[i], true
			if m.Address.Is4() {
				m.V4 = m.Address
			} else {
				m.V6 = m.Address
			}
		}
		h.machines[i] = &machineValue{h, m}
	}
	h.bad = c.bad
	return h
}

// addresses reads the addresses of machines.
func (c *call) addresses(name string) []netip.Addr {
	var out []netip.Addr
	seen := map[netip.Addr]bool{}
	for i, text := range c.strings(name) {
		a, err := netip.ParseAddr(text)
		hint := `addresses are written like "10.20.0.11" or "2001:db8::11"`
		switch {
		case err != nil, a.Zone() != "", a.Is4In6():
			if strings.Contains(text, "/") {
				hint = "leave out the length: a machine has one address"
			}
			c.errorf(name, []any{i}, "address", hint, "malformed address %q", text)
		case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			c.errorf(name, []any{i}, "address", "choose a unicast address that a machine can have", "address %s cannot be a machine's", a)
		case seen[a]:
			c.errorf(name, []any{i}, "address", "", "address %s is used twice", a)
		}
		seen[a] = true
		out = append(out, a)
	}
	return out
}

// image reads an image.
func (c *call) image(name string) *fleet.Image {
	switch v := c.args[c.arg(name)].(type) {
	case nil:
	case *thing[fleet.Image]:
		c.bad = c.bad || v.bad
		image := v.v
		return &image
	default:
		c.wrongType(name, nil, v, "an image(...)")
	}
	return nil
}

func image(c *call) starlark.Value {
	t := &thing[fleet.Image]{kind: "image", at: c.place()}
	i := &t.v
	i.Pos = c.start()
	i.Name = c.required("name")
	if i.Name != "" {
		if err := fleet.CheckName("image", i.Name); err != nil {
			c.syntaxError("name", nil, "name", err)
		}
	}
	given := c.one("debian", "oci", "disk", "host")
	i.Debian = c.strings("debian")
	for n, p := range i.Debian {
		if !debPackage.MatchString(p) {
			c.errorf("debian", []any{n}, "tool", `packages are written like "openssh-server" or "zookeeper=3.8.0-11"`, "malformed Debian package %q", p)
		}
	}
	i.OCI, i.Disk = c.hostPath("oci"), c.hostPath("disk")
	i.Host = c.boolean("host")
	i.Suite, i.Kernel = c.str("suite"), c.hostPath("kernel")
	i.Systemd = c.boolean("systemd")
	if i.Suite != "" && given != "debian" && given != "" {
		c.errorf("suite", nil, "argument", "suite belongs to debian", "an image with %s has no suite", given)
	}
	t.bad = c.bad
	return t
}

// hostPath reads the path of a file: absolute, or relative to the package, and
// then returned relative to the workspace.
func (c *call) hostPath(name string) string {
	p := c.required(name)
	if p == "" {
		return ""
	}
	out, err := c.resolvePath(p)
	if err != nil {
		c.errorf(name, nil, "path", "paths are relative to the package, or absolute", "%s", err)
	}
	return out
}

func (c *call) resolvePath(p string) (string, error) {
	if strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("malformed path %q", p)
	}
	if strings.HasPrefix(p, "//") {
		return path.Clean(strings.TrimPrefix(strings.Replace(p, ":", "/", 1), "//")), nil
	}
	if path.IsAbs(p) {
		return path.Clean(p), nil
	}
	joined := path.Join(c.state.module.Package, strings.TrimPrefix(p, ":"))
	if joined == ".." || strings.HasPrefix(joined, "../") {
		return "", fmt.Errorf("path %q leads out of the workspace", p)
	}
	return joined, nil
}

// machines reads a machine, hardware, or a list of either; nil where it is not
// given.
func (c *call) machines(name string) []*machineValue {
	v := c.args[c.arg(name)]
	if v == nil {
		return nil
	}
	var out []*machineValue
	add := func(v starlark.Value, path []any) {
		switch v := v.(type) {
		case *machineValue:
			for _, m := range out {
				if m == v {
					return
				}
			}
			out = append(out, v)
		case *hardwareValue:
			out = append(out, v.machines...)
		default:
			c.wrongType(name, path, v, "hardware, a machine, or a list of them")
		}
	}
	switch l := v.(type) {
	case *machineValue, *hardwareValue:
		add(v, nil)
	case starlark.Tuple, *starlark.List:
		for i, x := range c.elements(name, nil, l, "") {
			add(x, []any{i})
		}
		if len(out) == 0 && !c.bad {
			c.errorf(name, nil, "empty", "leave it out to mean all machines", "%s of %s is empty", name, c.sig.name)
		}
	default:
		add(v, nil)
	}
	return out
}

func machineNames(ms []*machineValue) []string {
	var names []string
	for _, m := range ms {
		names = append(names, m.m.Name)
	}
	return names
}
