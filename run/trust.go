package run

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"

	"bj/fleet"
	"bj/sandbox"
)

// Where machines find whom to trust, if TLS is inspected: the system's bundle
// with the lease's own authority in it. The variables are for programs that look
// elsewhere.
const trustBundle = "/etc/ssl/certs/ca-certificates.crt"

var trustVariables = []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"}

// verify reads the certificates that the other side of an inspected endpoint is
// verified with.
func (p *Plan) verify(h *sandbox.HTTP, c *fleet.Condition, e fleet.Endpoint, o PlanOptions) *Refusal {
	if e.CA == "" {
		return nil
	}
	h.CA = e.CA
	if !strings.Contains(e.CA, "-----BEGIN") {
		data, err := os.ReadFile(absolute(o.Root, e.CA))
		if err != nil {
			return &Refusal{Pos: c.Pos, Message: fmt.Sprintf("the certificates (ca) of %s cannot be read: %v", e.URL, err)}
		}
		h.CA = string(data)
	}
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(h.CA)) {
		return &Refusal{Pos: c.Pos, Message: fmt.Sprintf("there is no certificate in ca of %s", e.URL), Hint: "ca is a file of certificates in PEM, or their text"}
	}
	return nil
}

// inspects reports whether TLS is inspected under a policy.
func inspects(p sandbox.Policy) bool {
	for _, a := range p.Allows {
		if a.HTTP != nil && a.HTTP.Inspect {
			return true
		}
	}
	return false
}

// newAuthority makes the authority of one lease. Its key is never in a machine.
func newAuthority(until time.Time) (*sandbox.Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "bj: the authority of this lease"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &sandbox.Authority{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs}),
	}, nil
}

// trust is the file that makes a machine trust an authority, beside those that
// the host trusts.
func trust(a *sandbox.Authority) sandbox.File {
	bundle, err := os.ReadFile(trustBundle)
	if err != nil {
		bundle = nil // a host without one: then the authority is alone
	}
	if len(bundle) > 0 && !bytes.HasSuffix(bundle, []byte("\n")) {
		bundle = append(bundle, '\n')
	}
	return sandbox.File{Path: trustBundle, Mode: 0o644, Content: append(bundle, a.Cert...), ReadOnly: true}
}
