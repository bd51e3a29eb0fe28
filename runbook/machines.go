package runbook

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"sort"
	"strings"

	"bj/fleet"
)

// Machines are an operator's own machines: what of theirs stands for what of a
// recipe.
type Machines struct{ rows []hostRow }

// hostRow is one line of hosts.csv.
type hostRow struct {
	line    int
	recipe  string // label; empty: every recipe
	machine string // its name in recipes, or an address
	name    string // empty: it stays
	v4, v6  netip.Addr
}

// hostName is a name that can stand in a hosts file and in a script.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// columns of hosts.csv; the first is needed.
var columns = []string{"machine", "name", "address", "address6", "recipe"}

// ReadMachines reads hosts.csv: a heading that names the columns, then a row
// for each machine. Machine is the name in recipes, or an address or name of
// theirs that is no machine's; name, address and address6 are the operator's own, and
// recipe, a label, is for a name that means different machines in different
// recipes. Empty fields change nothing.
func ReadMachines(data []byte) (*Machines, error) {
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	r.Comment, r.TrimLeadingSpace, r.FieldsPerRecord = '#', true, -1
	head, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty; its first line is machine,name,address")
	}
	if err != nil {
		return nil, err
	}
	at := map[string]int{}
	for i, h := range head {
		h = strings.ToLower(strings.TrimSpace(h))
		if !slices.Contains(columns, h) {
			return nil, fmt.Errorf("line 1: there is no column %q, only %s", h, strings.Join(columns, ", "))
		}
		at[h] = i
	}
	if _, ok := at["machine"]; !ok {
		return nil, errors.New("line 1: there is no column machine; the first line is machine,name,address")
	}
	m := &Machines{}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			return m, m.check()
		}
		if err != nil {
			return nil, err
		}
		line, _ := r.FieldPos(0)
		field := func(name string) string {
			if i, ok := at[name]; ok && i < len(record) {
				return strings.TrimSpace(record[i])
			}
			return ""
		}
		if len(record) > len(head) {
			return nil, fmt.Errorf("line %d has %d fields, and the first line names %d", line, len(record), len(head))
		}
		x := hostRow{line: line, recipe: field("recipe"), machine: field("machine"), name: field("name")}
		if x.machine == "" {
			return nil, fmt.Errorf("line %d names no machine", line)
		}
		if x.name != "" && !hostName.MatchString(x.name) {
			return nil, fmt.Errorf("line %d: %q is no name of a machine", line, x.name)
		}
		for _, name := range []string{"address", "address6"} {
			text := field(name)
			if text == "" {
				continue
			}
			a, err := netip.ParseAddr(text)
			if err != nil || a.Zone() != "" {
				return nil, fmt.Errorf("line %d: %q is no address", line, text)
			}
			if a = a.Unmap(); a.Is4() && name == "address" {
				x.v4 = a
			} else if a.Is6() && !x.v6.IsValid() {
				x.v6 = a
			} else {
				return nil, fmt.Errorf("line %d: %s belongs into the other column, or is there twice", line, a)
			}
		}
		m.rows = append(m.rows, x)
	}
}

// check refuses what cannot be meant.
func (m *Machines) check() error {
	type key struct{ recipe, what string }
	seen := map[key]int{}
	for _, x := range m.rows {
		k := key{x.recipe, x.machine}
		if first := seen[k]; first > 0 {
			return fmt.Errorf("line %d: %s is in line %d already; a column recipe tells two of them apart", x.line, x.machine, first)
		}
		seen[k] = x.line
	}
	return nil
}

// Unknown returns the machines that no recipe has, each with its line.
func (m *Machines) Unknown(f *fleet.Fleet) []string {
	var out []string
	hosts := map[string]bool{} // names of endpoints
	endpoint := func(e *fleet.Endpoint) {
		if e != nil && e.Host != "" {
			hosts[e.Host] = true
		}
	}
	for _, s := range f.Services {
		for _, w := range s.Pathways {
			for i := range w.Endpoints {
				endpoint(&w.Endpoints[i])
			}
		}
	}
	for _, r := range f.Recipes {
		for i := range r.Conditions {
			endpoint(r.Conditions[i].Endpoint)
		}
	}
	for _, x := range m.rows {
		_, err := netip.ParseAddr(x.machine)
		found := err == nil || hosts[x.machine]
		for _, r := range f.Recipes {
			found = found || (x.recipe == "" || x.recipe == r.Label) && slices.ContainsFunc(r.Machines(), func(m fleet.Machine) bool { return m.Name == x.machine })
		}
		if !found {
			out = append(out, fmt.Sprintf("%s (line %d)", x.machine, x.line))
		}
	}
	return out
}

// row returns the row for a machine of a recipe, or nil.
func (m *Machines) row(label, machine string) *hostRow {
	if m == nil {
		return nil
	}
	var found *hostRow
	for i := range m.rows {
		if x := &m.rows[i]; x.machine == machine && (x.recipe == label || x.recipe == "" && found == nil) {
			found = x
		}
	}
	return found
}

// renaming puts an operator's names and addresses in the place of a recipe's.
// All are replaced at once, so that two machines may have changed places.
type renaming struct {
	from    []string // longest first
	to      map[string]string
	names   map[string]string // machine → the operator's name, where it has one
	changed []string          // what is replaced in text, for people
}

// renaming returns what changes in the page of r: its own machines by name and
// address, and the addresses of all others.
func (m *Machines) renaming(f *fleet.Fleet, r *fleet.Recipe) (*renaming, error) {
	n := &renaming{to: map[string]string{}, names: map[string]string{}}
	if m == nil {
		return n, nil
	}
	line := map[string]int{}
	put := func(from, to string, x *hostRow, own bool) error {
		if before, ok := n.to[from]; ok && before != to {
			if own {
				return nil
			}
			if line[from] > 0 {
				return fmt.Errorf("lines %d and %d say different things about %s, which %s mentions", line[from], x.line, from, r.Label)
			}
			return nil // the recipe's own machine has it
		}
		n.to[from] = to
		if !own {
			line[from] = x.line
		}
		return nil
	}
	addresses := func(x *hostRow, machine fleet.Machine, own bool) error {
		for _, pair := range [][2]netip.Addr{{machine.V4, x.v4}, {machine.V6, x.v6}} {
			if !pair[1].IsValid() || !own && pair[0] != machine.Address {
				continue // each recipe counts the addresses that it does not say from the same one on
			}
			if err := put(pair[0].String(), pair[1].String(), x, own); err != nil {
				return err
			}
		}
		return nil
	}
	for _, machine := range r.Machines() {
		x := m.row(r.Label, machine.Name)
		if x == nil {
			continue
		}
		if err := addresses(x, machine, true); err != nil {
			return nil, err
		}
		if x.name != "" {
			n.names[machine.Name] = x.name
			// A machine that is alone may be called "names" or "store": such a
			// word is in paths and titles, too. It stays, and the hosts lines
			// make it known beside the new name.
			if strings.HasSuffix(machine.Name, fmt.Sprintf("-%d", machine.Index)) {
				n.to[machine.Name] = x.name
			}
		}
	}
	for _, other := range f.Recipes {
		if other == r {
			continue
		}
		for _, machine := range other.Machines() {
			x := m.row(other.Label, machine.Name)
			if x == nil || !machine.Declared {
				continue
			}
			if err := addresses(x, machine, false); err != nil {
				return nil, err
			}
		}
	}
	for i := range m.rows {
		x := &m.rows[i]
		a, err := netip.ParseAddr(x.machine)
		if err != nil || x.recipe != "" && x.recipe != r.Label {
			continue
		}
		to := x.v4
		if a.Is6() {
			to = x.v6
		}
		if to.IsValid() {
			if err := put(a.String(), to.String(), x, false); err != nil {
				return nil, err
			}
		}
	}
	for from, to := range maps.Clone(n.to) {
		n.from = append(n.from, from)
		n.changed = append(n.changed, from+" → "+to)
		if inExpression := regexp.QuoteMeta(from); inExpression != from {
			n.to[inExpression] = regexp.QuoteMeta(to)
			n.from = append(n.from, inExpression)
		}
	}
	sort.Strings(n.changed)
	slices.SortFunc(n.from, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return n, nil
}

// name returns what a machine is called.
func (n *renaming) name(machine string) string {
	if own := n.names[machine]; own != "" {
		return own
	}
	return machine
}

// addr returns which address a machine has.
func (n *renaming) addr(a netip.Addr) string {
	if to := n.to[a.String()]; to != "" {
		return to
	}
	return a.String()
}

// text replaces whole names and addresses.
func (n *renaming) text(s string) string {
	if len(n.from) == 0 {
		return s
	}
	var b strings.Builder
next:
	for i := 0; i < len(s); {
		for _, from := range n.from {
			if strings.HasPrefix(s[i:], from) && whole(s, i, i+len(from), from) {
				b.WriteString(n.to[from])
				i += len(from)
				continue next
			}
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

// whole reports whether s[i:j] is an address or a name by itself, rather than a
// part of a longer one.
func whole(s string, i, j int, from string) bool {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	letter := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	at := func(k int) byte {
		if k < 0 || k >= len(s) {
			return ' '
		}
		return s[k]
	}
	before, after := at(i-1), at(j)
	switch _, err := netip.ParseAddr(strings.ReplaceAll(from, `\`, "")); {
	case err != nil: // a name; "name.more" is another
		word := func(c byte) bool { return digit(c) || letter(c) || c == '-' || c == '_' }
		return !word(before) && !word(after) && !(before == '.' && word(at(i-2))) && !(after == '.' && word(at(j+1)))
	case strings.Contains(from, ":"):
		hex := func(c byte) bool { return digit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == ':' }
		return !hex(before) && !hex(after)
	}
	return !digit(before) && !(before == '.' && digit(at(i-2))) && !digit(after) && !(after == '.' && digit(at(j+1)))
}
