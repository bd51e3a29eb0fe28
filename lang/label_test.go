package lang

import (
	"errors"
	"testing"
)

func TestParseLabel(t *testing.T) {
	for _, c := range []struct{ text, pkg, want string }{
		{"//recipes/zookeeper:cold_start", "", "//recipes/zookeeper:cold_start"},
		{"//recipes/zookeeper", "", "//recipes/zookeeper:zookeeper"},
		{":cold_start", "recipes/zk", "//recipes/zk:cold_start"},
		{"sub:x", "recipes", "//recipes/sub:x"},
		{"//:x", "recipes", "//:x"},
		{"@bj//stdlib:container.star", "p", "@bj//stdlib:container.star"},
	} {
		l, err := ParseLabel(c.text, c.pkg)
		if err != nil || l.String() != c.want {
			t.Errorf("ParseLabel(%q, %q) = %v, %v, want %s", c.text, c.pkg, l, err, c.want)
		}
	}
	for _, text := range []string{"", "x", "/x", "//", "//a:", "//a b:c", "//a//b:c", "//a/:b", "///a:b", "//a:b:c", "@bj", "@/x//a:b", ":a/b", "../a:b", "//..:a", "//a/...", "//...:x", "//a:\x00", "//a:\xff"} {
		l, err := ParseLabel(text, "p")
		var le *LabelError
		if !errors.As(err, &le) || le.Hint == "" {
			t.Errorf("ParseLabel(%q) = %v, %v", text, l, err)
		}
	}
}

func TestParsePattern(t *testing.T) {
	for _, c := range []struct{ text, cwd, want string }{
		{"//recipes/...", "x", "//recipes/..."},
		{"//...", "x", "//..."},
		{"...", "", "//..."},
		{"...", "recipes", "//recipes/..."},
		{"zk/...", "recipes", "//recipes/zk/..."},
		{"//recipes/zk:all", "", "//recipes/zk:all"},
		{":all", "recipes/zk", "//recipes/zk:all"},
		{"//recipes/zk", "", "//recipes/zk"},
		{"zk", "recipes", "//recipes/zk"},
		{"./zk/", "recipes", "//recipes/zk"},
		{"../etcd", "recipes/zk", "//recipes/etcd"},
		{".", "recipes/zk", "//recipes/zk"},
		{".", "", "//:all"},
		{"//", "", "//:all"},
		{":cold_start", "recipes/zk", "//recipes/zk:cold_start"},
		{"zk:cold_start", "recipes", "//recipes/zk:cold_start"},
		{"-//recipes/broken/...", "", "-//recipes/broken/..."},
		{"-:x", "p", "-//p:x"},
	} {
		p, err := ParsePattern(c.text, c.cwd)
		if err != nil || p.String() != c.want {
			t.Errorf("ParsePattern(%q, %q) = %v, %v, want %s", c.text, c.cwd, p, err, c.want)
		}
	}
	for _, text := range []string{"", "-", "/a", "//a:b:c", "//a b", "//a/.../b", "//a/...:x", "..", "../../x", "//a:...", "//.:x", "--//a", "@bj//x:y"} {
		p, err := ParsePattern(text, "")
		var le *LabelError
		if !errors.As(err, &le) || le.Hint == "" {
			t.Errorf("ParsePattern(%q) = %+v, %v", text, p, err)
		}
	}
}

func TestPatternCovers(t *testing.T) {
	for _, c := range []struct {
		pattern, pkg string
		want         bool
	}{
		{"//a/...", "a", true}, {"//a/...", "a/b", true}, {"//a/...", "ab", false},
		{"//...", "", true}, {"//...", "a", true}, {"//a:all", "a", true}, {"//a:all", "a/b", false},
	} {
		p, err := ParsePattern(c.pattern, "")
		if err != nil || p.Covers(c.pkg) != c.want {
			t.Errorf("%s covers %s: %v", c.pattern, c.pkg, !c.want)
		}
	}
}

func FuzzLabel(f *testing.F) {
	for _, s := range []string{"//a/b:c", ":c", "//a", "@bj//stdlib:x.star", "a:b", "//:x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLabel(s, "p/q")
		if err != nil {
			return
		}
		again, err := ParseLabel(l.String(), "other")
		if err != nil || again != l {
			t.Errorf("%q parses as %v, which parses as %v, %v", s, l, again, err)
		}
	})
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"//a/b:c", ":c", "//a", "-//a/...", "...", "./a", "../x", "//:all", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePattern(s, "p/q")
		if err != nil {
			return
		}
		again, err := ParsePattern(p.String(), "other")
		if err != nil || again != p {
			t.Errorf("%q parses as %v, which parses as %v, %v", s, p, again, err)
		}
	})
}

func TestNearest(t *testing.T) {
	for _, c := range []struct {
		x    string
		from []string
		want string
	}{
		{"servise", []string{"service", "recipe"}, "service"},
		{"timeuot", []string{"within", "timeout"}, "timeout"},
		{"nmaes", []string{"names", "nodes"}, "names"},
		{"x", []string{"y"}, ""},
		{"abc", []string{"xyz"}, ""},
		{"Names", []string{"names"}, "names"},
		{"ab", []string{"abd", "abc"}, "abc"},
		{"setp", []string{"set", "step"}, "step"},
	} {
		if got := Nearest(c.x, c.from); got != c.want {
			t.Errorf("Nearest(%q, %v) = %q, want %q", c.x, c.from, got, c.want)
		}
	}
}
