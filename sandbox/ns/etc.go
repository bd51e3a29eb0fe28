package ns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// hiddenNames are files and folders of /etc, by pattern of their base name,
// that hold keys, secrets, identity or ways to others. What is not readable by
// everyone is hidden whatever its name.
var hiddenNames = []string{
	"resolv.conf*", "resolvconf", "hosts", "hostname", "mailname", "machine-id", "mtab",
	"shadow*", "gshadow*", "*.key", "*.keytab", "*keytab", "*.kdbx", "*.jks", "*.p12", "*.pfx", "ssh_host_*", "*_rsa", "*_ed25519", "*_ecdsa",
	"passwords*", "passwd-", "group-", "*secret*", "*credential*", "*token*", "*.pgpass", "netrc", ".netrc", "npmrc", "pip.conf", "gitconfig", "authinfo", "auth.conf", "auth.conf.d",
	"NetworkManager", "netplan", "networks", "wireguard", "openvpn", "ipsec.d", "ppp", "wpa_supplicant", "strongswan*", "tinc",
	"letsencrypt", "kubernetes", "rancher", "cni", "docker", "containers", "containerd", "cloud", "waagent*", "amazon", "google*",
	"consul*", "nomad*", "vault*", "etcd", "chef", "puppet*", "salt", "ansible", "munge", "krb5.conf*", "sssd", "ldap*", "libnss-*", "nslcd*",
	"kubelet*", "rndc.key", "bind", "unbound", "dnsmasq*", "nftables*", "iptables", "ufw", "firewalld", "samba", "iscsi", "multipath*",
}

// hiddenEtc returns the paths, relative to /etc, that no machine may see.
func hiddenEtc() ([]string, error) {
	var hidden []string
	err := filepath.WalkDir("/etc", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			// What this user cannot read is hidden.
			if p != "/etc" && (errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)) {
				hidden = append(hidden, strings.TrimPrefix(p, "/etc/"))
				return fs.SkipDir
			}
			return err
		}
		if p == "/etc" {
			return nil
		}
		hide := false
		for _, pattern := range hiddenNames {
			if ok, _ := path.Match(pattern, d.Name()); ok {
				hide = true
				break
			}
		}
		if !hide && d.Type()&fs.ModeSymlink == 0 {
			fi, err := d.Info()
			if err != nil {
				return nil // gone meanwhile
			}
			need := fs.FileMode(0o004)
			if d.IsDir() {
				need = 0o005
			}
			hide = fi.Mode().Perm()&need != need || !(d.IsDir() || fi.Mode().IsRegular())
		}
		if !hide {
			return nil
		}
		hidden = append(hidden, strings.TrimPrefix(p, "/etc/"))
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading /etc: %w", err)
	}
	return hidden, nil
}

// shadowFile gives every account of the host a locked password, so that su and
// the like find what they look for and no hash of the host is inside.
func shadowFile() (string, error) {
	data, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return "", fmt.Errorf("reading accounts: %w", err)
	}
	var b strings.Builder
	for _, line := range strings.Split(string(data), "\n") {
		if name, _, ok := strings.Cut(line, ":"); ok && name != "" {
			fmt.Fprintf(&b, "%s:*:19000:0:99999:7:::\n", name)
		}
	}
	return b.String(), nil
}

// rootName says what the machines run on.
func rootName() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "host"
	}
	for _, line := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return "host " + strings.Trim(v, `"`)
		}
	}
	return "host"
}
