package graph

import (
	"cmp"
	"slices"
	"strings"
)

// Stats answers: what is this graph like?
type Stats struct {
	Schema   string `json:"schema"`
	Services struct {
		Proven   int `json:"proven"`
		Claimed  int `json:"claimed"`
		Unpared  int `json:"unpared"`
		Unproven int `json:"unproven"`
		Unowned  int `json:"unowned"`
		Known    int `json:"known"` // of these, declared by other repositories
	} `json:"services"`
	Recipes struct {
		All     int `json:"all"`
		Unpared int `json:"unpared"` // no way out: they say allow("*")
		Failed  int `json:"failed"`  // no way out: their last run did not recover
	} `json:"recipes"`
	Edges            int      `json:"edges"`
	Depth            int      `json:"depth"`             // layers of the condensation
	LargestComponent int      `json:"largest_component"` // services in it
	MostNeeded       []Needed `json:"most_needed"`       // at most 10
	// OwnersWithoutRecipe own services, none of which has a recipe.
	OwnersWithoutRecipe []string `json:"owners_without_recipe"`
	// Stale are recipes that recovered, and changed since.
	Stale []string `json:"stale"`
	// Unused are edges whose condition was not used when the recipe recovered.
	Unused []Edge  `json:"unused"`
	Tools  []Count `json:"tools"`  // recipes by tool
	Stdlib []Count `json:"stdlib"` // recipes by file of bj's library
	// Results reports whether recorded results were given: without them
	// nothing is proven or stale.
	Results bool    `json:"results"`
	Assumed Assumed `json:"assumed"`
}

// Needed is how many services need one.
type Needed struct {
	Service  string `json:"service"`
	Direct   int    `json:"direct"`
	Indirect int    `json:"indirect"` // directly or not
}

// Stats counts.
func (g *Graph) Stats() *Stats {
	s := &Stats{Schema: schemaOf("stats"), Edges: len(g.edges), Stale: []string{}, Unused: []Edge{}, OwnersWithoutRecipe: []string{},
		MostNeeded: []Needed{}, Tools: g.facts.tools, Stdlib: g.facts.stdlib, Results: g.facts.results, Assumed: g.Assumed()}
	owners := map[string]bool{} // whether one of its services has a recipe
	for i := range g.services {
		x := &g.services[i]
		switch x.State {
		case Proven:
			s.Services.Proven++
		case Claimed:
			s.Services.Claimed++
		case Unpared:
			s.Services.Unpared++
		case Unproven:
			s.Services.Unproven++
		case Unowned:
			s.Services.Unowned++
		}
		if x.Owner != "" {
			owners[x.Owner] = owners[x.Owner] || x.State == Proven || x.State == Claimed || x.State == Unpared
		}
	}
	for name, has := range owners {
		if !has {
			s.OwnersWithoutRecipe = append(s.OwnersWithoutRecipe, name)
		}
	}
	slices.Sort(s.OwnersWithoutRecipe)
	s.Services.Known = g.known
	s.Recipes.All = len(g.recipes)
	for i := range g.recipes {
		switch r := &g.recipes[i]; {
		case r.Excluded == ExcludedUnpared:
			s.Recipes.Unpared++
		case r.Excluded == ExcludedFailed:
			s.Recipes.Failed++
		}
		if g.recipes[i].Stale {
			s.Stale = append(s.Stale, g.recipes[i].Label)
		}
	}
	for i := range g.edges {
		if e := &g.edges[i]; e.evidence != nil && !e.evidence.Used && !e.kept {
			s.Unused = append(s.Unused, g.Edge(i))
		}
	}
	s.Depth = len(g.layers())
	cs := findComponents(g.adj, nil)
	for i := range int32(cs.count()) {
		s.LargestComponent = max(s.LargestComponent, len(g.fold(cs.members(i))))
	}
	s.MostNeeded = g.mostNeeded(10)
	return s
}

// mostNeeded returns the services that most others need directly.
func (g *Graph) mostNeeded(n int) []Needed {
	direct := make([]int, len(g.services))
	for p := range g.edges {
		direct[g.edges[p].to]++
	}
	var order []int
	for s := range direct {
		if direct[s] > 0 {
			order = append(order, s)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(direct[b], direct[a]), strings.Compare(g.services[a].Name, g.services[b].Name))
	})
	out := []Needed{}
	for _, s := range order[:min(n, len(order))] {
		users := slices.DeleteFunc(g.NeededBy(s), func(x int) bool { return x == s })
		var all []int32
		for p, hit := range reach(g.radj, g.pathways(int32(s)), nil) {
			if hit && g.owner[p] != int32(s) {
				all = append(all, int32(p))
			}
		}
		out = append(out, Needed{Service: g.services[s].Name, Direct: len(users), Indirect: len(g.fold(all))})
	}
	return out
}
