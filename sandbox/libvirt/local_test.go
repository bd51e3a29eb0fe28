package libvirt

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"bj/sandbox"
)

// Each way in which libvirt is not there has its own words and its own cure.
func TestConnectSays(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return fmt.Sprintf("qemu:///system?socket=%s/%s", dir, name) }
	listen := func(name string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		return l
	}
	listen("dead").Close()
	other := listen("other")
	t.Cleanup(func() { other.Close() })
	go func() { // answers, but not as libvirt does
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			conn.Close()
		}
	}()
	for uri, want := range map[string][2]string{
		at("none"):                      {"there is no libvirt at ", "apt-get install libvirt-daemon-system"},
		at("dead"):                      {"libvirtd does not run at ", "systemctl start libvirtd"},
		at("other"):                     {"connecting to libvirt at ", "virsh -c "},
		"qemu+ssh://far.invalid/system": {"libvirt qemu+ssh://far.invalid/system: machines are made by QEMU on this host only", "BJ_LIBVIRT_URI=qemu:///system"},
		"xen:///system":                 {"machines are made by QEMU on this host only", "BJ_LIBVIRT_URI=qemu:///system"},
		"%zz":                           {`"%zz" is no libvirt URI`, "BJ_LIBVIRT_URI=qemu:///system"},
	} {
		l, err := connect(t.Context(), uri)
		if err == nil {
			l.Disconnect()
			t.Errorf("%s: connected", uri)
			continue
		}
		if e := sandbox.AsError(err, ""); e.Code != sandbox.CodeLease || !strings.Contains(e.Error(), want[0]) || !strings.HasPrefix(e.Hint, want[1]) {
			t.Errorf("%s: %v, hint %q", uri, err, e.Hint)
		}
	}
}
