package lang

import (
	"slices"
	"strings"
)

// Nearest returns the candidate that x was most likely meant to be, or "" if
// none is near: by edit distance with transpositions (Damerau's optimal string
// alignment), of at most a third of the length and one more, blind to case and
// underscores. Of equals it is one as long as x, since letters are swapped more
// often than lost, then the first in order of the alphabet.
func Nearest(x string, candidates []string) string {
	folded := fold(x)
	limit := len(folded)/3 + 1
	if len(folded) < 3 {
		limit = 1
	}
	best, bestDistance := "", limit+1
	for _, c := range candidates {
		if c == x {
			continue
		}
		d := distance(folded, fold(c), limit)
		same, bestSame := len(c) == len(x), len(best) == len(x)
		if d < bestDistance || d == bestDistance && best != "" && (same && !bestSame || same == bestSame && c < best) {
			best, bestDistance = c, d
		}
	}
	if bestDistance >= len(folded) && len(folded) > 0 && !strings.EqualFold(best, x) {
		return "" // nothing in common
	}
	return best
}

// DidYouMean returns a hint naming the nearest candidate, or other if none is near.
func DidYouMean(x string, candidates []string, other string) string {
	if near := Nearest(x, candidates); near != "" {
		return "did you mean " + near + "?"
	}
	return other
}

func fold(s string) string {
	return strings.ToLower(strings.ReplaceAll(s, "_", ""))
}

// distance is the optimal string alignment distance, or something larger than
// limit if it is larger than that.
func distance(a, b string, limit int) int {
	if len(a)-len(b) > limit || len(b)-len(a) > limit {
		return limit + 1
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		if slices.Min(row) > limit {
			return limit + 1
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
