package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// An authority is a certificate authority of the injector's own.
//
// Authorities are replaced without an outage in three steps, each a matter of
// its age, so that replicas agree without talking: at first a new one is only
// trusted (the caBundle has it), after an overlap it issues, and after another
// overlap the older ones are dropped.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// skew is how much the clocks of nodes may differ: certificates are dated back
// by it.
const skew = time.Hour

// minRotate keeps the overlap longer than the replicas and the API server need
// to see a change.
const minRotate = 20 * time.Second

func overlap(rotate time.Duration) time.Duration { return min(rotate/4, 10*time.Minute) }

func (a authority) age(now time.Time) time.Duration { return now.Sub(a.cert.NotBefore.Add(skew)) }

// rotated gives the authorities, the oldest first, that are right now.
func rotated(list []authority, now time.Time, rotate time.Duration) ([]authority, error) {
	issuer := issuing(list, now, rotate)
	kept := slices.DeleteFunc(slices.Clone(list), func(a authority) bool {
		superseded := issuer.cert != nil && a.cert.NotBefore.Before(issuer.cert.NotBefore) && issuer.age(now) >= 2*overlap(rotate)
		return superseded || now.After(a.cert.NotAfter)
	})
	if len(kept) > 0 && kept[len(kept)-1].age(now) < rotate {
		return kept, nil
	}
	fresh, err := newAuthority(now, rotate)
	return append(kept, fresh), err
}

// issuing gives the newest authority that everyone trusts by now.
func issuing(list []authority, now time.Time, rotate time.Duration) authority {
	if len(list) == 0 {
		return authority{}
	}
	for _, a := range slices.Backward(list) {
		if a.age(now) >= overlap(rotate) {
			return a
		}
	}
	return list[0]
}

func newAuthority(now time.Time, rotate time.Duration) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	cert, err := sign(x509.Certificate{
		Subject:               pkix.Name{CommonName: "sealane-injector"},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(3*rotate + skew),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, authority{key: key}, key)
	return authority{cert: cert, key: key}, err
}

// serving issues a certificate for this process's own, new key.
func (a authority) serving(names ...string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := sign(x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		DNSNames:    names,
		NotBefore:   a.cert.NotBefore,
		NotAfter:    a.cert.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a, key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// sign makes a certificate of the template. An authority without a certificate
// signs its own.
func sign(template x509.Certificate, by authority, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	parent := by.cert
	if parent == nil {
		parent = &template
	}
	raw, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, by.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(raw)
}

// bundle is what the API server is to trust.
func bundle(list []authority) []byte {
	var b bytes.Buffer
	for _, a := range list {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	}
	return b.Bytes()
}

// marshal writes the authorities with their keys, for the Secret.
func marshal(list []authority) ([]byte, error) {
	var b bytes.Buffer
	for _, a := range list {
		key, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return nil, err
		}
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	}
	return b.Bytes(), nil
}

func unmarshal(text []byte) ([]authority, error) {
	var list []authority
	for len(bytes.TrimSpace(text)) > 0 {
		var cert, key *pem.Block
		cert, text = pem.Decode(text)
		if cert != nil {
			key, text = pem.Decode(text)
		}
		if cert == nil || key == nil || cert.Type != "CERTIFICATE" || key.Type != "PRIVATE KEY" {
			return nil, errors.New("not certificates, each with its key")
		}
		a, err := parseAuthority(cert.Bytes, key.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	slices.SortStableFunc(list, func(a, b authority) int { return a.cert.NotBefore.Compare(b.cert.NotBefore) })
	return list, nil
}

func parseAuthority(certDER, keyDER []byte) (authority, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return authority{}, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return authority{}, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return authority{}, fmt.Errorf("the key does not belong to the certificate %x", cert.SerialNumber)
	}
	return authority{cert: cert, key: key}, nil
}
