package agent

import (
	"slices"
	"strconv"
	"testing"
)

const passwd = `root:x:0:0:root:/root:/bin/bash
# not an entry
short:x:1
bad:x:one:1::/:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:
daemon:x:99:99:again:/:/bin/sh
last:x:4294967295:7:GECOS:/home/last:/bin/zsh`

func TestFind(t *testing.T) {
	for _, c := range []struct {
		name  string
		found bool
		want  user
	}{
		{"root", true, user{name: "root", home: "/root", shell: "/bin/bash"}},
		{"0", true, user{name: "root", home: "/root", shell: "/bin/bash"}},
		{"daemon", true, user{name: "daemon", uid: 1, gid: 1, home: "/usr/sbin", shell: "/bin/sh"}},
		{"last", true, user{name: "last", uid: 4294967295, gid: 7, home: "/home/last", shell: "/bin/zsh"}},
		{"short", false, user{}},
		{"bad", false, user{}},
		{"nobody", false, user{}},
		{"", false, user{}},
	} {
		u := user{shell: "/bin/sh"}
		found := u.find([]byte(passwd), c.name)
		if found != c.found || found && (u.name != c.want.name || u.uid != c.want.uid || u.gid != c.want.gid || u.home != c.want.home || u.shell != c.want.shell) {
			t.Errorf("%q: %t %+v", c.name, found, u)
		}
	}
}

func TestMemberOf(t *testing.T) {
	groups := "root:x:0:\nadm:x:4:alice,bob\ndisk:x:6:bob\nbad:x:x:bob\ntwice:x:4:bob\nown:x:100:bob\n"
	if got := memberOf([]byte(groups), "bob", 100); !slices.Equal(got, []uint32{100, 4, 6}) {
		t.Errorf("got %v", got)
	}
	if got := memberOf([]byte(groups), "eve", 7); !slices.Equal(got, []uint32{7}) {
		t.Errorf("got %v", got)
	}
}

func TestMapped(t *testing.T) {
	for id, want := range map[uint32]bool{0: true, 1: false, 99: false, 100: true, 149: true, 150: false, 4294967295: false} {
		if got := mapped([]byte("         0       1000          1\n 100 200000 50\n"), id); got != want {
			t.Errorf("%d: %t", id, got)
		}
	}
	if !mapped([]byte("0 0 4294967295\n"), 4294967294) || mapped([]byte("0 0 4294967295\n"), 4294967295) {
		t.Error("the whole range is not the whole range")
	}
}

// What is found is in the file.
func FuzzUsers(f *testing.F) {
	f.Add([]byte(passwd), "daemon")
	f.Add([]byte("a:x:1:1:::\n"), "1")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		u := user{shell: "/bin/sh"}
		if u.find(b, name) && u.name != name {
			if n, err := strconv.ParseUint(name, 10, 32); err != nil || uint32(n) != u.uid {
				t.Errorf("%q: %+v", name, u)
			}
		}
		if ids := memberOf(b, name, 7); ids[0] != 7 {
			t.Errorf("groups %v", ids)
		}
		mapped(b, 7)
	})
}
