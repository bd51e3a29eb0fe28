package seal

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"bj/sandbox"
)

// maxFlows bounds the distinct flows that are told apart.
const maxFlows = 4096

// Flows counts blocked attempts, equal ones together. Its zero value is ready,
// and its methods may be called from several goroutines. Source ports are not
// told apart: every try has another. Beyond some thousands of distinct flows
// of a machine, the further ones of each protocol are counted together, with
// neither source nor destination.
type Flows struct {
	mu    sync.Mutex
	flows map[flowKey]*flow
	next  int
}

type flowKey struct {
	machine, iface, protocol string
	source                   netip.Addr
	destination              netip.AddrPort
	name, path, method       string // of questions and requests alone
	unit                     string // as of a sandbox.Flow
}

type flow struct {
	sandbox.Flow
	order int
}

// Add counts a drop, of the machine and at the interface as a person calls
// them: "lo" or "eth0". Unit is as of a sandbox.Flow.
func (f *Flows) Add(machine, iface, unit string, d Drop) {
	f.add(flowKey{machine: machine, iface: iface, protocol: d.Protocol, source: d.Source.Addr(), destination: d.Destination, unit: unit}, d.Source, 1, d.Time)
}

// AddName counts a question about a name that was left unanswered.
func (f *Flows) AddName(machine, unit, name string, from, to netip.AddrPort, at time.Time) {
	f.add(flowKey{machine: machine, iface: "eth0", protocol: "dns", source: from.Addr(), destination: to, name: name, unit: unit}, from, 1, at)
}

// AddFrame sets the count of frames that carry no IP, as Counters has them.
func (f *Flows) AddFrame(machine, iface string, kind Frame, count int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := flowKey{machine: machine, iface: iface, protocol: kind.Protocol()}
	if old := f.flows[k]; old != nil {
		if count > old.Count {
			old.Count, old.Last = count, now
		}
		return
	}
	f.insert(k, netip.AddrPort{}, count, now)
}

// AddRequest counts a request of a protocol, "http" or "https", that was not
// passed on.
func (f *Flows) AddRequest(machine, unit, protocol, host, method, path string, from, to netip.AddrPort, at time.Time) {
	f.add(flowKey{machine, "eth0", protocol, from.Addr(), to, host, path, method, unit}, from, 1, at)
}

func (f *Flows) add(k flowKey, source netip.AddrPort, count int64, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.flows[k]; old != nil {
		old.Count += count
		old.Last = at
		return
	}
	if len(f.flows) >= maxFlows {
		k.source, k.destination, source = netip.Addr{}, netip.AddrPort{}, netip.AddrPort{}
		k.name, k.path, k.method, k.unit = "", "", "", ""
		if old := f.flows[k]; old != nil {
			old.Count += count
			old.Last = at
			return
		}
		// One more for each protocol number at most.
	}
	f.insert(k, source, count, at)
}

func (f *Flows) insert(k flowKey, source netip.AddrPort, count int64, at time.Time) {
	if f.flows == nil {
		f.flows = map[flowKey]*flow{}
	}
	f.flows[k] = &flow{order: f.next, Flow: sandbox.Flow{
		Machine: k.machine, Interface: k.iface, Protocol: k.protocol,
		Source: source, Destination: k.destination, Name: k.name, Path: k.path, Method: k.method, Unit: k.unit, Count: count, First: at, Last: at,
	}}
	f.next++
}

// List returns all flows in order of first sight.
func (f *Flows) List() []sandbox.Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*flow, 0, len(f.flows))
	for _, x := range f.flows {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b *flow) int { return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.order, b.order)) })
	out := make([]sandbox.Flow, len(list))
	for i, x := range list {
		out[i] = x.Flow
	}
	return out
}
