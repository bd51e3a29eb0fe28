package graph

import (
	"cmp"
	"math"
	"slices"
)

// grid is where the boxes of a picture lie: every box has a column and a row of
// its own, so that a picture's sizes are sums over columns and rows, and hiding
// or opening a box moves the others without changing their order.
//
// The way of an edge is told by its ends. It leaves a box towards the box that
// is needed; where columns lie between the two, it runs along the trunk of the
// needed box: a horizontal line in the gap between two rows, on a lane of its
// own. So lines turn only between columns and never cross a box, and all that
// need one box share one line.
type grid struct {
	columns, rows int
	bands         []band  // of each layer
	col, row      []int32 // of each box
	gap           []int32 // of each box, of its trunk: gap i lies above row i
	lane          []int32 // within the gap
	trunk         []span  // columns that the trunk crosses
	lanes         []int32 // in use, of each gap (rows+1 of them)
	turns         []int32 // edges that turn to the left of each column (columns+1 of them)
}

// band is the run of columns that holds a layer.
type band struct{ first, count int32 }

// span is a range of columns, both ends included; empty where last < first.
type span struct{ first, last int32 }

func (s span) empty() bool { return s.last < s.first }

const (
	// placeSweeps is how often the order within the layers is improved: the
	// sum of heights hardly falls after eight.
	placeSweeps = 12
	// placeRows is the height up to which a layer is one column.
	placeRows = 24
	// placeAspect is the width of a cell by its height: layers are folded into
	// several columns until the picture is about as wide as a screen.
	placeAspect, screenAspect = 6.4, 1.6
	// maxLanes is how many lanes a gap has; trunks beyond share them.
	maxLanes = 6
)

// place lays out boxes in layers; layer has the layer of each. An edge is a pair
// of boxes, the first of which needs the second, mostly in a lower layer. The
// result depends on nothing but the arguments.
//
// It is the layered drawing of Sugiyama, Tagawa and Toda (1981): boxes are
// ordered within their layer by the mean height of their neighbours, sweeping
// forth and back, and the best of the orders is kept. Edges over many layers
// pull as they are, without dummies, since they run in gaps and not in cells.
// Heights then follow from isotonic regression (pool adjacent violators), which
// moves each box as near to its neighbours as the order allows.
func place(layer []int32, edges [][2]int32) *grid {
	n := len(layer)
	g := &grid{
		col: make([]int32, n), row: make([]int32, n),
		gap: make([]int32, n), lane: make([]int32, n), trunk: make([]span, n),
	}
	p := newPlacer(layer, edges)
	p.fold(g)
	p.sweep()
	p.settle(g)
	g.route(edges)
	return g
}

// placer is the state of one call of place.
type placer struct {
	layer  []int32
	layers [][]int32 // boxes of each layer, in order
	down   adjacency // neighbours in lower layers
	up     adjacency // neighbours in higher layers
	y      []float64 // height of each box, counted from the middle of the picture
	key    []float64
	wraps  []int32 // columns of each layer
}

// adjacency lists neighbours in compressed rows.
type adjacency struct{ start, to []int32 }

func (a *adjacency) of(b int32) []int32 { return a.to[a.start[b]:a.start[b+1]] }

// adjacent makes the adjacency of n boxes from pairs.
func adjacent(n int, pairs int, pair func(int) (from, to int32)) adjacency {
	a := adjacency{make([]int32, n+1), make([]int32, pairs)}
	for i := range pairs {
		from, _ := pair(i)
		a.start[from+1]++
	}
	for i := range n {
		a.start[i+1] += a.start[i]
	}
	next := slices.Clone(a.start[:n])
	for i := range pairs {
		from, to := pair(i)
		a.to[next[from]] = to
		next[from]++
	}
	return a
}

func newPlacer(layer []int32, edges [][2]int32) *placer {
	n := len(layer)
	p := &placer{layer: layer, y: make([]float64, n), key: make([]float64, n)}
	// lower and higher by layer: inside a cycle some edges run backwards.
	low := func(i int) (int32, int32) {
		a, b := edges[i][0], edges[i][1]
		if layer[a] < layer[b] {
			a, b = b, a
		}
		return a, b
	}
	p.down = adjacent(n, len(edges), low)
	p.up = adjacent(n, len(edges), func(i int) (int32, int32) { a, b := low(i); return b, a })
	depth := int32(0)
	for _, l := range layer {
		depth = max(depth, l+1)
	}
	p.layers = make([][]int32, depth)
	for b, l := range layer {
		p.layers[l] = append(p.layers[l], int32(b))
	}
	for _, boxes := range p.layers {
		// What nobody needs and what needs nobody stays at the end.
		slices.SortStableFunc(boxes, func(a, b int32) int { return cmp.Compare(p.lonely(a), p.lonely(b)) })
	}
	return p
}

func (p *placer) lonely(b int32) int {
	if len(p.down.of(b))+len(p.up.of(b)) == 0 {
		return 1
	}
	return 0
}

// fold decides on how many rows there are and into how many columns each layer
// is folded.
func (p *placer) fold(g *grid) {
	longest := 0
	for _, boxes := range p.layers {
		longest = max(longest, len(boxes))
	}
	columns := func(rows int) (sum int) {
		for _, boxes := range p.layers {
			sum += (len(boxes) + rows - 1) / rows
		}
		return sum
	}
	rows := min(longest, placeRows)
	for rows < longest && float64(columns(rows))*placeAspect > float64(rows)*screenAspect {
		rows++
	}
	p.wraps = make([]int32, len(p.layers))
	for l, boxes := range p.layers {
		if rows > 0 {
			p.wraps[l] = int32((len(boxes) + rows - 1) / rows)
		}
		g.rows = max(g.rows, (len(boxes)+int(p.wraps[l])-1)/max(int(p.wraps[l]), 1))
		g.bands = append(g.bands, band{int32(g.columns), p.wraps[l]})
		g.columns += int(p.wraps[l])
	}
}

// spread sets the heights of a layer's boxes from their order.
func (p *placer) spread(l int) {
	boxes, w := p.layers[l], int(p.wraps[l])
	rows := (len(boxes) + w - 1) / max(w, 1)
	for i, b := range boxes {
		p.y[b] = float64(i/w) - float64(rows-1)/2
	}
}

// sweep orders the boxes of each layer.
func (p *placer) sweep() {
	for l := range p.layers {
		p.spread(l)
	}
	best, least := clone2(p.layers), p.heights()
	for i := range placeSweeps {
		for j := range p.layers {
			l, near := j, &p.down
			if i%2 == 1 {
				l, near = len(p.layers)-1-j, &p.up
			}
			boxes := p.layers[l]
			for _, b := range boxes {
				p.key[b] = p.y[b]
				if all := near.of(b); len(all) > 0 {
					sum := 0.0
					for _, o := range all {
						sum += p.y[o]
					}
					p.key[b] = sum / float64(len(all))
				} else if p.lonely(b) == 1 {
					p.key[b] = math.Inf(1)
				}
			}
			slices.SortStableFunc(boxes, func(a, b int32) int { return cmp.Compare(p.key[a], p.key[b]) })
			p.spread(l)
		}
		if h := p.heights(); h < least {
			best, least = clone2(p.layers), h
		}
	}
	p.layers = best
	for l := range p.layers {
		p.spread(l)
	}
}

func clone2(s [][]int32) [][]int32 {
	c := make([][]int32, len(s))
	for i := range s {
		c[i] = slices.Clone(s[i])
	}
	return c
}

// heights is the sum of the heights that all edges climb.
func (p *placer) heights() (sum float64) {
	for b := range p.y {
		for _, o := range p.down.of(int32(b)) {
			sum += math.Abs(p.y[b] - p.y[o])
		}
	}
	return sum
}

// settle gives every box its column and row, in the order that sweep found.
func (p *placer) settle(g *grid) {
	middle := float64(g.rows-1) / 2
	for b := range p.y {
		p.y[b] += middle
	}
	var want []float64
	for i := range 6 {
		for j := range p.layers {
			l := j
			if i%2 == 1 {
				l = len(p.layers) - 1 - j
			}
			if p.wraps[l] != 1 {
				continue // a folded layer is full
			}
			boxes := p.layers[l]
			want = want[:0]
			for _, b := range boxes {
				sum, count := 0.0, 0
				for _, near := range []*adjacency{&p.down, &p.up} {
					for _, o := range near.of(b) {
						sum += p.y[o]
						count++
					}
				}
				if count == 0 {
					sum, count = p.y[b], 1
				}
				want = append(want, sum/float64(count))
			}
			isotonic(want, float64(g.rows-len(boxes)))
			for i, b := range boxes {
				p.y[b] = want[i]
			}
		}
	}
	for l, boxes := range p.layers {
		w := int(p.wraps[l])
		for i, b := range boxes {
			g.col[b] = g.bands[l].first + int32(i%w)
			g.row[b] = int32(math.Round(p.y[b]))
			if w == 1 {
				// Rounding half away from zero could join two neighbours.
				g.row[b] = int32(math.Floor(p.y[b]-float64(i)+0.5)) + int32(i)
			} else {
				g.row[b] = int32((g.rows-(len(boxes)+w-1)/w)/2 + i/w)
			}
		}
	}
}

// isotonic replaces heights by the nearest ones, by least squares, that rise by
// at least one from each to the next and lie in [0, slack+len-1].
func isotonic(want []float64, slack float64) {
	type pool struct {
		sum   float64
		count int
	}
	var pools []pool
	for i, w := range want {
		pools = append(pools, pool{w - float64(i), 1})
		for len(pools) > 1 {
			a, b := pools[len(pools)-2], pools[len(pools)-1]
			if a.sum/float64(a.count) <= b.sum/float64(b.count) {
				break
			}
			pools = append(pools[:len(pools)-2], pool{a.sum + b.sum, a.count + b.count})
		}
	}
	i := 0
	for _, p := range pools {
		at := min(max(p.sum/float64(p.count), 0), slack)
		for range p.count {
			want[i] = at + float64(i)
			i++
		}
	}
}

// route gives trunks their gaps and lanes, and counts the turns.
func (g *grid) route(edges [][2]int32) {
	n := len(g.col)
	sum, count := make([]float64, n), make([]int, n)
	left, right := slices.Clone(g.col), slices.Clone(g.col) // the farthest columns that a trunk crosses
	g.turns = make([]int32, g.columns+1)
	for _, e := range edges {
		from, to := e[0], e[1]
		sum[to] += float64(g.row[from])
		count[to]++
		if g.col[from] > g.col[to] { // as it should be: what is needed lies to the left
			right[to] = max(right[to], g.col[from]-1)
			g.turns[g.col[from]]++
			g.turns[g.col[to]+1]++
		} else { // backwards, or beside it in its own column
			left[to] = min(left[to], g.col[from]+1)
			g.turns[g.col[from]+1]++
			g.turns[g.col[to]]++
		}
	}
	g.lanes = make([]int32, g.rows+1)
	byGap := make([][]int32, g.rows+1)
	for b, col := range g.col {
		g.gap[b], g.trunk[b] = -1, span{left[b], right[b]}
		switch {
		case left[b] == col && right[b] == col:
			g.trunk[b] = span{0, -1}
			continue
		case left[b] == col:
			g.trunk[b].first++
		case right[b] == col:
			g.trunk[b].last--
		}
		g.gap[b] = g.row[b]
		if sum[b]/float64(count[b]) > float64(g.row[b]) {
			g.gap[b]++
		}
		byGap[g.gap[b]] = append(byGap[g.gap[b]], int32(b))
	}
	for gap, trunks := range byGap {
		slices.SortStableFunc(trunks, func(a, b int32) int { return cmp.Compare(g.trunk[a].first, g.trunk[b].first) })
		var ends [maxLanes]int32
		for _, b := range trunks {
			lane := 0
			for i := range ends {
				if ends[i] <= g.trunk[b].first {
					lane = i
					break
				}
				if ends[i] < ends[lane] {
					lane = i
				}
			}
			g.lane[b] = int32(lane)
			ends[lane] = max(ends[lane], g.trunk[b].last+1)
			g.lanes[gap] = max(g.lanes[gap], int32(lane)+1)
		}
	}
}
