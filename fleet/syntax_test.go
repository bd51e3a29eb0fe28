package fleet

import (
	"reflect"
	"testing"
	"time"
)

func TestParseEndpoint(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"tcp://10.0.0.1:443", ""},
		{"TCP://10.0.0.1:443-443", "tcp://10.0.0.1:443"},
		{"tcp://10.0.0.0/24:443", ""},
		{"tcp://10.0.0.1/32:443", "tcp://10.0.0.1:443"},
		{"tcp://[2001:db8::/32]:443", ""},
		{"tcp://[2001:DB8:0::1]:443", "tcp://[2001:db8::1]:443"},
		{"udp://10.0.0.0/24:8000-8010", ""},
		{"udp://DB.Internal.:53", "udp://db.internal:53"},
		{"icmp://10.0.0.1", ""},
		{"icmp://[fd00::1]", ""},
		{"http://example.org:80/", "http://example.org"},
		{"https://example.org:443/a/b/", "https://example.org/a/b"},
		{"https://example.org:8443/a", ""},
		{"https://[2001:db8::1]/a", ""},
		{"https://10.0.0.1/v2/x", ""},
		{"dns://*.pkgs.internal", ""},
		{"dns://*", ""},
		{"dns://a.b.", "dns://a.b"},
		{"unix:///run/x.sock", ""},
		{"lib:///usr/lib/x86_64-linux-gnu/libfoo.so*", ""},
		{"tcp://127.0.0.1:80", ""},
	} {
		want := c.want
		if want == "" {
			want = c.text
		}
		e, err := ParseEndpoint(c.text)
		if err != nil || e.URL != want {
			t.Errorf("ParseEndpoint(%q) = %q, %v, want %q", c.text, e.URL, err, want)
		}
	}
	for _, text := range []string{
		"", "x", "tcp:", "tcp://", "tcp://a", "tcp://a:", "tcp://a:0", "tcp://a:65536", "tcp://a:2-1", "tcp://a:b", "tcp://a:1/x",
		"tcp://10.0.0.1/33:1", "tcp://10.0.0.1/24:1", "tcp://10.0.0.256:1", "tcp://10.0.0:1", "tcp://::1:1", "tcp://[::1:1", "tcp://[10.0.0.1]:1",
		"tcp://[::ffff:10.0.0.1]:1", "tcp://[fe80::1%eth0]:1", "tcp://[::1]1", "tcp://[::1]:", "tcp://-a:1", "tcp://a..b:1", "tcp://u@a:1", "tcp://*.a:1", "tcp:// a:1",
		"icmp://a:1", "icmp://", "http://", "http://a?x", "http://a#x", "http://a//b", "http://a/./b", "https://10.0.0.0/24", "https://10.0.0.0/24:443", "http://10.0.0.0/24/",
		"dns://", "dns://a*", "dns://*.", "dns://a/b", "dns://10.0.0.1", "unix://x", "unix:///", "unix:///a/../b", "lib://a", "lib:///a[", "ftp://a:1", "tcp://\x00:1", "tcp://\xff:1",
	} {
		e, err := ParseEndpoint(text)
		se, ok := err.(*SyntaxError)
		if !ok || se.Hint == "" || se.Message == "" {
			t.Errorf("ParseEndpoint(%q) = %+v, %v", text, e, err)
		}
	}
}

func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{"tcp://10.0.0.1:443", "udp://[2001:db8::/32]:8000-8010", "icmp://a.b", "https://a:8443/b/c", "dns://*.a", "unix:///run/x", "lib:///usr/lib/a*", "http://[::1]/x", "tcp://10.0.0.0/8:1", "http://A00//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := ParseEndpoint(s)
		if err != nil {
			return
		}
		again, err := ParseEndpoint(e.URL)
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Errorf("%q parses as %+v, which parses as %+v, %v", s, e, again, err)
		}
	})
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"1KiB": 1 << 10, "512MiB": 512 << 20, "3GiB": 3 << 30, "1024MiB": 1 << 30} {
		n, err := ParseSize(text)
		if err != nil || n != want {
			t.Errorf("ParseSize(%q) = %d, %v", text, n, err)
		}
		if back, err := ParseSize(FormatSize(n)); err != nil || back != n {
			t.Errorf("%d prints as %s", n, FormatSize(n))
		}
	}
	for _, text := range []string{"", "5", "MiB", "0MiB", "1.5GiB", "5MB", "5 MiB", "-1MiB", "+1MiB", "9999999999GiB", "5mib", "5MiBMiB", "99999999999999999999KiB"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d", text, n)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{"1h30m": 90 * time.Minute, "45s": 45 * time.Second, "200ms": 200 * time.Millisecond, "0s": 0, "1m200ms": time.Minute + 200*time.Millisecond} {
		d, err := ParseDuration(text)
		if err != nil || d != want {
			t.Errorf("ParseDuration(%q) = %v, %v", text, d, err)
		}
		if FormatDuration(d) != text {
			t.Errorf("%v prints as %s, want %s", d, FormatDuration(d), text)
		}
	}
	for _, text := range []string{"", "5", "s", "5x", "1.5s", "-5s", "5s5s", "5s1h", "5 s", "99999999999h", "99999999999999999999s", "5us"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("ParseDuration(%q) = %v", text, d)
		}
	}
}

func FuzzDuration(f *testing.F) {
	f.Add("1h30m")
	f.Add("200ms")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(FormatDuration(d)); err != nil || again != d || d < 0 {
			t.Errorf("%q is %v, which prints as %q", s, d, FormatDuration(d))
		}
	})
}

func FuzzSize(f *testing.F) {
	f.Add("512MiB")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			return
		}
		if again, err := ParseSize(FormatSize(n)); err != nil || again != n || n <= 0 {
			t.Errorf("%q is %d, which prints as %q", s, n, FormatSize(n))
		}
	})
}

func FuzzPorts(f *testing.F) {
	for _, s := range []string{"2181", "53/udp", "8000-8010"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePorts(s)
		if err != nil {
			return
		}
		if again, err := ParsePorts(p.String()); err != nil || again != p || p.First < 1 || p.Last < p.First {
			t.Errorf("%q is %+v, which prints as %q", s, p, p)
		}
	})
}
