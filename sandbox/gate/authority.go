package gate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/netip"
	"sync"
	"time"

	"bj/sandbox"
)

// authority makes certificates for what requests are inspected for.
type authority struct {
	pair tls.Certificate
	mu   sync.Mutex
	made map[string]*tls.Certificate // by host; no more than the policy names
}

// newAuthority returns nil where there is none, or none that can be read: then
// nothing that would be inspected passes.
func newAuthority(a *sandbox.Authority) *authority {
	if a == nil {
		return nil
	}
	pair, err := tls.X509KeyPair(a.Cert, a.Key)
	if err != nil {
		return nil
	}
	return &authority{pair: pair, made: map[string]*tls.Certificate{}}
}

// certificate returns one for a host that the policy names.
func (a *authority) certificate(host string) (*tls.Certificate, error) {
	if a == nil {
		return nil, errors.New("the lease has no authority")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.made[host]; c != nil {
		return c, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "bj relay"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.pair.Leaf, key.Public(), a.pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: [][]byte{der, a.pair.Certificate[0]}, PrivateKey: key}
	a.made[host] = c
	return c, nil
}
