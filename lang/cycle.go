package lang

import (
	"fmt"
	"slices"
	"strings"

	"bj/lang/diag"
)

// findCycles marks the modules that load each other in a circle as broken, and
// reports one shortest circle of each strongly connected component, beginning
// with its least file, with the place of every load in it. Components are
// found with Tarjan's algorithm ("Depth-first search and linear graph
// algorithms", 1972), without recursion.
func (l *loader) findCycles() {
	t := l.tree
	type node struct {
		index, low int
		onStack    bool
		next       int // load to follow
	}
	nodes := make(map[*Module]*node, len(t.Modules))
	order := slices.Clone(t.Modules)
	slices.SortFunc(order, func(a, b *Module) int { return strings.Compare(a.File, b.File) })
	var stack, path []*Module
	counter := 0
	push := func(m *Module) {
		counter++
		nodes[m] = &node{index: counter, low: counter, onStack: true}
		stack, path = append(stack, m), append(path, m)
	}
	for _, root := range order {
		if nodes[root] != nil || len(root.Loads) == 0 {
			continue
		}
		push(root)
		for len(path) > 0 {
			m := path[len(path)-1]
			n := nodes[m]
			if n.next < len(m.Loads) {
				dep := t.byFile[m.Loads[n.next].File]
				n.next++
				if d := nodes[dep]; d == nil {
					push(dep)
				} else if d.onStack {
					n.low = min(n.low, d.index)
				}
				continue
			}
			path = path[:len(path)-1]
			if len(path) > 0 {
				up := nodes[path[len(path)-1]]
				up.low = min(up.low, n.low)
			}
			if n.low == n.index {
				cut := slices.Index(stack, m)
				component := slices.Clone(stack[cut:])
				stack = stack[:cut]
				for _, c := range component {
					nodes[c].onStack = false
				}
				l.reportCycle(component)
			}
		}
	}
}

func (l *loader) reportCycle(component []*Module) {
	member := make(map[string]*Module, len(component))
	for _, m := range component {
		member[m.File] = m
	}
	first := slices.MinFunc(component, func(a, b *Module) int { return strings.Compare(a.File, b.File) })
	// Breadth first from the least file back to it.
	from := map[string]LoadStmt{}
	reached := map[string]*Module{}
	queue := []*Module{first}
	closed := false
	for len(queue) > 0 && !closed {
		m := queue[0]
		queue = queue[1:]
		for _, ld := range m.Loads {
			next := member[ld.File]
			if next == nil || reached[ld.File] != nil {
				continue
			}
			reached[ld.File], from[ld.File] = m, ld
			if next == first {
				closed = true
				break
			}
			queue = append(queue, next)
		}
	}
	if !closed {
		return // one module that does not load itself
	}
	var loop []LoadStmt
	for f := first.File; ; {
		loop = append(loop, from[f])
		f = reached[f].File
		if f == first.File {
			break
		}
	}
	slices.Reverse(loop)
	names := []string{first.File}
	d := diag.Diagnostic{Pos: loop[0].Pos, Rule: "load-cycle", Hint: "move what they share to a file that loads none of them"}
	for i, ld := range loop {
		names = append(names, ld.File)
		if i > 0 {
			d.Related = append(d.Related, diag.Related{Pos: ld.Pos, Message: "loads " + ld.File})
		}
	}
	d.Message = fmt.Sprintf("files load each other in a circle: %s", strings.Join(names, " -> "))
	for _, m := range component {
		m.Broken = true
	}
	first.fail(d)
}
