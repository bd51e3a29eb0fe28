package sandboxtest

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Host is what of a host a provider could change or leave behind, as the
// calling process sees it.
type Host struct {
	things map[string]string // name → value
	self   int
}

// leftoverDeadline is how long things may take to vanish: the kernel ends
// namespaces and what is in them in the background.
const leftoverDeadline = 10 * time.Second

// Snapshot looks at the host: processes, namespaces, mounts, links, routes,
// packet filters, Unix sockets, cgroups of leases, settings of the kernel, and this process's
// own descriptors. Take it before a lease.
func Snapshot() Host {
	h := Host{things: map[string]string{}, self: os.Getpid()}
	h.processes()
	h.files("mount", "/proc/self/mountinfo", func(f []string) string { return strings.Join(f[3:5], " ") })
	h.files("link", "/proc/thread-self/net/dev", func(f []string) string {
		if name, ok := strings.CutSuffix(f[0], ":"); ok {
			return name
		}
		return ""
	})
	h.files("route", "/proc/thread-self/net/route", func(f []string) string { return strings.Join(f[:3], " ") })
	h.files("route", "/proc/thread-self/net/ipv6_route", func(f []string) string { return f[0] + "/" + f[1] + " " + f[len(f)-1] })
	h.files("address", "/proc/thread-self/net/if_inet6", func(f []string) string { return f[0] + " " + f[len(f)-1] })
	h.files("socket", "/proc/thread-self/net/unix", func(f []string) string {
		if len(f) > 7 && !strings.HasPrefix(f[7], "@bj-witness") {
			return f[7]
		}
		return ""
	})
	h.filters()
	h.cgroups()
	h.settings()
	return h
}

// filters are tables of packet filters and rules of routing, as far as this
// process may see them.
func (h Host) filters() {
	if c, err := nftables.New(); err == nil {
		if tables, err := c.ListTables(); err == nil {
			for _, t := range tables {
				h.put("table", fmt.Sprintf("%d %s", t.Family, t.Name), "")
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if rules, err := netlink.RuleList(family); err == nil {
			for _, r := range rules {
				h.put("rule", r.String(), "")
			}
		}
	}
}

func (h Host) put(kind, name, value string) {
	if name != "" {
		h.things[kind+" "+name] = value
	}
}

func (h Host) files(kind, path string, name func(fields []string) string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 5 {
			h.put(kind, name(fields), "")
		}
	}
}

var spaces = []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}

func (h Host) processes() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if pid != h.self {
			stat, err := os.ReadFile(dir + "/stat")
			if err != nil {
				continue
			}
			// The 22nd field, when it was started, tells one pid from the next.
			fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			if len(fields) > 19 {
				args, _ := os.ReadFile(dir + "/cmdline")
				h.put("process", strconv.Itoa(pid)+"@"+fields[19], fields[0]+" "+strings.ReplaceAll(string(args), "\x00", " "))
			}
		}
		for _, space := range spaces {
			if link, err := os.Readlink(dir + "/ns/" + space); err == nil {
				h.put("namespace", link, "")
			}
		}
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			target, err := os.Readlink(dir + "/fd/" + fd.Name())
			if err != nil {
				continue
			}
			kind, _, isSpace := strings.Cut(target, ":[")
			switch {
			case isSpace && slices.Contains(spaces, kind):
				h.put("namespace", target, "")
			case pid == h.self && strings.HasPrefix(target, "socket:["):
				h.put("descriptor", target, "of this process")
			case pid == h.self && strings.Contains(target, "/bj-"):
				h.put("descriptor", target, "of this process")
			}
		}
	}
}

// cgroups lists folders of leases. Those in which somebody lives are others':
// what the tests of one stage lease is gone, or has processes there.
func (h Host) cgroups() {
	living := map[string]bool{}
	events, _ := filepath.Glob("/sys/fs/cgroup/*/bj-*/cgroup.events")
	below, _ := filepath.Glob("/sys/fs/cgroup/bj-*/cgroup.events")
	for _, path := range append(events, below...) {
		// What cgroup.procs lists depends upon the reader's own namespaces.
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), "populated 1") {
			living[filepath.Base(filepath.Dir(path))] = true
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/bj-*", "/sys/fs/cgroup/*/bj-*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			if name := filepath.Base(dir); !living[name] && !strings.HasPrefix(name, "bj-agent") {
				h.put("cgroup", dir, "")
			}
		}
	}
}

// volatile settings change by themselves.
var volatile = []string{
	"random/", "ns_last_pid", "file-nr", "inode-nr", "inode-state", "dentry-state", "aio-nr", "pty/nr", "sched_domain", "perf_event",
	"nf_conntrack_count", "stat_refresh", "loadavg", "flush", "compact_memory", "drop_caches", "keys/", "hostname", "domainname", "/neigh/", "binfmt_misc", "mqueue", "quota/",
}

// settings are those of the kernel and of the host's own network.
func (h Host) settings() {
	for _, dir := range []string{"/proc/sys/kernel", "/proc/sys/fs", "/proc/sys/vm", "/proc/sys/net/ipv4", "/proc/sys/net/ipv6", "/proc/sys/net/core", "/proc/sys/net/netfilter"} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || slices.ContainsFunc(volatile, func(v string) bool { return strings.Contains(path, v) }) {
				return nil
			}
			if fi, err := d.Info(); err == nil && fi.Mode()&0o444 != 0 {
				if b, err := os.ReadFile(path); err == nil {
					h.things["setting "+path] = string(b)
				}
			}
			return nil
		})
	}
}

// Leftovers waits until the host is as it was, and returns what is not: what
// is there now and was not before, settings that have another value, and
// whatever carries one of the names.
func Leftovers(before Host, names ...string) []string {
	deadline := time.Now().Add(leftoverDeadline)
	for {
		left := before.diff(Snapshot(), names)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (h Host) diff(now Host, names []string) []string {
	var left []string
	for name, value := range now.things {
		old, ok := h.things[name]
		switch {
		case !ok:
			left = append(left, fmt.Sprintf("%s %s", name, value))
		case old != value && strings.HasPrefix(name, "setting "):
			left = append(left, fmt.Sprintf("%s: %q was %q", name, value, old))
		}
	}
	for name := range h.things {
		// What was there must still be: links, routes, mounts, settings.
		kind, _, _ := strings.Cut(name, " ")
		if _, ok := now.things[name]; !ok && (kind == "mount" || kind == "link" || kind == "route" || kind == "address" || kind == "setting") {
			left = append(left, "gone: "+name)
		}
	}
	for _, name := range names {
		for _, pattern := range []string{"/sys/fs/cgroup/%s", "/sys/fs/cgroup/*/%s", "/run/*%s*", "/tmp/*%s*"} {
			found, _ := filepath.Glob(fmt.Sprintf(pattern, name))
			for _, f := range found {
				left = append(left, "file "+f)
			}
		}
	}
	slices.Sort(left)
	return slices.Compact(left)
}
