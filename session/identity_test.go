package session

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
)

// A key pair as openssl 3.0 wrote it: genpkey -algorithm X25519, pkey -pubout.
const (
	opensslPrivate = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIDi1JzJpRufzvBGKabMAgIwX58hoc0zT72ELfbPo9kVM
-----END PRIVATE KEY-----
`
	opensslPublic = `-----BEGIN PUBLIC KEY-----
MCowBQYDK2VuAyEAFkbONIRffYhX0ytF32l9MA1Df976PD8qWYLr5yStsQs=
-----END PUBLIC KEY-----`
	opensslName = "FkbONIRffYhX0ytF32l9MA1Df976PD8qWYLr5yStsQs"
)

func TestOpenSSLKey(t *testing.T) {
	key, err := ParsePrivateKey([]byte(opensslPrivate))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(key.PEM()); got != opensslPrivate {
		t.Errorf("PEM: got %q, want openssl's %q", got, opensslPrivate)
	}
	if got := key.Public().String(); got != opensslName {
		t.Errorf("public name: got %s, want %s", got, opensslName)
	}
	if got := string(key.Public().SPKI()); got != opensslPublic {
		t.Errorf("SPKI: got %q, want openssl's %q", got, opensslPublic)
	}
}

func TestGenerateKey(t *testing.T) {
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParsePrivateKey(key.PEM())
	if err != nil {
		t.Fatal(err)
	}
	if again.Public() != key.Public() || !bytes.Equal(again.key.Bytes(), key.key.Bytes()) {
		t.Error("a key read back from its PEM is another key")
	}
	name := key.Public().String()
	if public, err := ParsePublicKey(name); err != nil || public != key.Public() {
		t.Errorf("ParsePublicKey(%q) = %v, %v", name, public, err)
	}
}

func TestIdentityContainer(t *testing.T) {
	key, err := ParsePublicKey(opensslName)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		SDMP struct {
			Version string
			Schemas []string
		}
		Identity struct{ Type, Expires, Key, Fingerprint string }
	}
	if err := json.Unmarshal(key.Identity(), &got); err != nil {
		t.Fatalf("%v in %s", err, key.Identity())
	}
	if got.SDMP.Version != "0.13" || strings.Join(got.SDMP.Schemas, " ") != "identity" || got.Identity.Type != "node" {
		t.Errorf("container head: %+v", got)
	}
	if got.Identity.Key != opensslPublic {
		t.Errorf("identity.key: %q", got.Identity.Key)
	}
	sum := sha512.Sum512([]byte(got.Identity.Key))
	want := base64.RawURLEncoding.EncodeToString(sum[:])
	if got.Identity.Fingerprint != want || key.Fingerprint() != want {
		t.Errorf("fingerprint %q and %q, want the hash of identity.key %q", got.Identity.Fingerprint, key.Fingerprint(), want)
	}
}

func TestParsePublicKeyRefuses(t *testing.T) {
	point := func(s string) string {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	f := strings.Repeat("f", 60)
	for name, s := range map[string]string{
		"empty":              "",
		"short":              opensslName[:42],
		"long":               opensslName + "A",
		"padded":             opensslName + "=",
		"space before":       " " + opensslName[:42],
		"line break inside":  opensslName[:20] + "\n" + opensslName[20:42],
		"standard alphabet":  "+" + opensslName[1:],
		"unused bits set":    opensslName[:42] + "t",
		"high bit set":       point("1646ce34845f7d8857d32b45df697d300d437fdefa3c3f2a5982ebe724adb18b"),
		"zero":               point(strings.Repeat("0", 64)),
		"one":                point("01" + strings.Repeat("0", 62)),
		"order 8, first":     point("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
		"order 8, second":    point("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
		"p minus one":        point("ec" + f + "7f"),
		"p":                  point("ed" + f + "7f"),
		"p plus one":         point("ee" + f + "7f"),
		"p plus 9, unsigned": point("f6" + f + "7f"),
	} {
		if k, err := ParsePublicKey(s); err == nil {
			t.Errorf("%s: accepted as %v", name, k)
		}
	}
}

func TestParsePrivateKeyRefuses(t *testing.T) {
	_, signing, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(opensslPrivate))
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	pkcs8 := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return encode("PRIVATE KEY", der)
	}
	// The same structure with an empty attributes field, which x509 ignores.
	attributes := append(append([]byte{0x30, 0x30}, block.Bytes[2:]...), 0xa0, 0x00)
	for name, s := range map[string]string{
		"empty":            "",
		"text":             "hello",
		"text before":      "key\n" + opensslPrivate,
		"text after":       opensslPrivate + "key\n",
		"two keys":         opensslPrivate + opensslPrivate,
		"a public key":     opensslPublic,
		"a header":         strings.Replace(opensslPrivate, "KEY-----\n", "KEY-----\nName: value\n\n", 1),
		"encrypted":        encode("ENCRYPTED PRIVATE KEY", block.Bytes),
		"other block type": encode("EC PRIVATE KEY", block.Bytes),
		"cut short":        encode("PRIVATE KEY", block.Bytes[:40]),
		"trailing DER":     encode("PRIVATE KEY", append(bytes.Clone(block.Bytes), 0)),
		"attributes":       encode("PRIVATE KEY", attributes),
		"Ed25519":          pkcs8(signing),
		"P-256":            pkcs8(p256),
	} {
		if _, err := ParsePrivateKey([]byte(s)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
