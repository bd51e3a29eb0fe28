// Package graph answers what an outage asks, from recipes alone: what must be
// back before this can come back?
//
// A fleet goes in, an immutable Graph comes out, and every question is a method
// that returns a plain value. Encoders, in files of their own, write those
// values; nothing here reads or writes files, and nothing here fails but the
// reading of foreign bytes.
//
//	New(fleet, Options) ──► *Graph ──► Cycles  Cuts  Order  Outage      ──► WriteText  WriteJSON
//	ReadSaved(bytes)    ──►            Impact  Why   Stats  Diff  Saved     WriteDOT   WriteMermaid
//	ReadTraces(bytes)   ──► DiffTraces                                      WriteSARIF
//
// # Model
//
// The nodes are pathways of services: package-store for reading is back before
// package-store for writing. A recipe is one way back for the pathways that it
// restores: all that its conditions name, and what its tools are kept in, must
// be up (AND). Recipes that restore the same pathway are alternatives (OR).
//
//	pathway ──restoredBy──► recipe ──needs──► pathway
//	        ◄──restores────        ◄──users──
//
// People read services, so answers fold pathways into them: a service is back
// when all of its pathways are, lies in the layer of its highest one, and is in
// a cycle if one of them is. Folded alone, reading and writing would make
// cycles that are none; so never analyse folded edges.
//
// Services, pathways, recipes and edges are numbered from 0 in the order of
// their names, and the numbers are indices of the slices that Services, Recipes
// and Edges return. An edge is what one recipe needs of one service: several
// conditions between the two are one, as heavy as the heaviest.
//
// # Which recipes count
//
// A pathway that no recipe restores is assumed to come back by other means
// (Options.AssumeDown takes it as lost), and so is an endpoint that nobody
// declares, and a service whose only recipes say allow("*"). A recipe with
// allow("*") has no edges and is never a way out. One whose last result is not
// "recovered" keeps its edges, and is no way out either: Recipe.Excluded says
// so, and a pathway that has no other recipe does not come back.
//
// # Recoverability
//
// What comes back is the least fixpoint over alternatives, computed in rounds
// (waves) with one counter for each recipe, as Dowling and Gallier do for Horn
// formulae: linear in the size of the graph. Components are Tarjan's, with a
// stack of our own; their numbers are a topological order, so layers are one
// pass. See core.go, which knows numbers only, and holds a million services and
// five million edges.
package graph

import (
	"slices"
	"strings"
	"time"
)

// State says what is known of a service's way back.
type State string

const (
	Proven   State = "proven"   // results are given, and a recipe as it stands now recovered
	Claimed  State = "claimed"  // it has a recipe
	Unpared  State = "unpared"  // its only recipes say allow("*")
	Unproven State = "unproven" // declared, without a recipe
	Unowned  State = "unowned"  // an endpoint that nobody declares
)

// Service is a node as people read it.
type Service struct {
	Name     string   `json:"name"`
	Owner    string   `json:"owner"`
	Kind     string   `json:"kind"`
	Package  string   `json:"package"`
	File     string   `json:"file"`
	Line     int      `json:"line"`
	State    State    `json:"state"`
	Pathways []string `json:"pathways"` // sorted
}

// Why a recipe is never a way out.
const (
	ExcludedUnpared = "unpared" // it says allow("*")
	ExcludedFailed  = "failed"  // its last result is not "recovered"
)

// Recipe is one way back.
type Recipe struct {
	Label    string   `json:"label"`
	Service  string   `json:"service"`
	Restores []string `json:"restores"` // sorted
	File     string   `json:"file"`
	Line     int      `json:"line"`
	// Excluded says why the recipe is no way out; empty where it is one.
	Excluded string `json:"excluded,omitempty"`
	// Seconds is how long it takes: the median of the recorded runs that
	// recovered, else the estimate; nil where neither is known.
	Seconds *float64 `json:"seconds,omitempty"`
	// Stale reports that it recovered last at another digest.
	Stale bool `json:"stale,omitempty"`
}

// Edge says that a recipe of the service From needs some pathways of To.
type Edge struct {
	From     string    `json:"from"`
	To       string    `json:"to"`
	Recipe   string    `json:"recipe"`
	Pathways []string  `json:"pathways"` // of To, sorted
	Why      string    `json:"why"`
	Effort   int       `json:"effort"`
	File     string    `json:"file"`
	Line     int       `json:"line"`
	Kept     bool      `json:"kept,omitempty"` // a tool is kept there; nothing is opened
	Evidence *Evidence `json:"evidence,omitempty"`
}

// Evidence is what recorded results say of an edge.
type Evidence struct {
	Recovered time.Time `json:"recovered"` // when the edge's recipe last did
	Digest    string    `json:"digest"`    // of the recipe, then
	Stale     bool      `json:"stale"`     // the recipe has another digest now
	Used      bool      `json:"used"`      // the condition was used in that run
}

// Graph is immutable: its methods may be called from any goroutine. Slices that
// it returns belong to it.
type Graph struct {
	core
	services []Service
	recipes  []Recipe
	pathway  []string // names of pathways
	owner    []int32  // pathway → service
	first    []int32  // service → its first pathway; its last is before first[service+1]
	edges    []edge
	files    []string // that edges are written in
	needEdge []int32  // parallel to needs.to: the edge of the need
	facts    facts
	known    int // services that are declared in other repositories
}

// facts are counted while building, for Stats.
type facts struct {
	tools   []Count
	stdlib  []Count
	results bool // recorded results were given
}

// edge is an Edge as it is stored.
type edge struct {
	recipe, to         int32 // recipe, service
	effort, file, line int32
	why                string
	kept               bool
	evidence           *Evidence
}

// Services returns all services, sorted by name.
func (g *Graph) Services() []Service { return g.services }

// Recipes returns all recipes, sorted by label.
func (g *Graph) Recipes() []Recipe { return g.recipes }

// Len returns the number of edges.
func (g *Graph) Len() int { return len(g.edges) }

// Edge returns the i-th edge. Edges are sorted by recipe, then by the service
// that is needed.
func (g *Graph) Edge(i int) Edge {
	e := &g.edges[i]
	r := &g.recipes[e.recipe]
	out := Edge{
		From: r.Service, To: g.services[e.to].Name, Recipe: r.Label, Pathways: []string{}, Why: e.why, Effort: int(e.effort),
		File: g.files[e.file], Line: int(e.line), Kept: e.kept, Evidence: e.evidence,
	}
	for k := g.needs.start[e.recipe]; k < g.needs.start[e.recipe+1]; k++ {
		if g.needEdge[k] == int32(i) {
			out.Pathways = append(out.Pathways, g.pathway[g.needs.to[k]])
		}
	}
	return out
}

// Edges returns all edges; see Edge. It makes a large slice.
func (g *Graph) Edges() []Edge {
	out := make([]Edge, len(g.edges))
	for i := range out {
		out[i] = g.Edge(i)
	}
	return out
}

// Ends returns the numbers of the services that edge i joins.
func (g *Graph) Ends(i int) (from, to int) {
	e := &g.edges[i]
	return int(g.serviceOfRecipe(e.recipe)), int(e.to)
}

// Find returns the number of a service.
func (g *Graph) Find(name string) (int, bool) {
	return slices.BinarySearchFunc(g.services, name, func(s Service, n string) int { return strings.Compare(s.Name, n) })
}

// Assumed counts what is taken to come back by other means.
type Assumed struct {
	Unproven int `json:"unproven"` // services
	Unowned  int `json:"unowned"`  // endpoints
	Unpared  int `json:"unpared"`  // services
	// Pathways counts those of services that have recipes, of which none
	// restores them.
	Pathways int `json:"pathways"`
	// Down reports that all of them are taken as lost instead.
	Down bool `json:"down"`
}

// Services is the number of services and endpoints that are assumed.
func (a Assumed) Services() int { return a.Unproven + a.Unowned + a.Unpared }

// Assumed counts what every answer rests on.
func (g *Graph) Assumed() Assumed {
	a := Assumed{Down: g.down}
	for s := range g.services {
		switch g.services[s].State {
		case Unproven:
			a.Unproven++
		case Unowned:
			a.Unowned++
		case Unpared:
			a.Unpared++
		default:
			for p := g.first[s]; p < g.first[s+1]; p++ {
				if g.assumed[p] {
					a.Pathways++
				}
			}
		}
	}
	return a
}

// serviceOfRecipe returns the service of a recipe, which restores at least one
// of its pathways.
func (g *Graph) serviceOfRecipe(r int32) int32 {
	if of := g.restores.of(r); len(of) > 0 {
		return g.owner[of[0]]
	}
	s, _ := g.Find(g.recipes[r].Service)
	return int32(s)
}

// names returns the sorted names of services, without repeats.
func (g *Graph) names(services []int32) []string {
	services = slices.Clone(services)
	slices.Sort(services)
	out := []string{}
	for i, s := range services {
		if i == 0 || s != services[i-1] {
			out = append(out, g.services[s].Name)
		}
	}
	return out
}

// fold returns the services of pathways, sorted, without repeats.
func (g *Graph) fold(pathways []int32) []int32 {
	out := make([]int32, 0, len(pathways))
	for _, p := range pathways {
		out = append(out, g.owner[p])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// pathways returns all pathways of services.
func (g *Graph) pathways(services ...int32) []int32 {
	var out []int32
	for _, s := range services {
		for p := g.first[s]; p < g.first[s+1]; p++ {
			out = append(out, p)
		}
	}
	return out
}
