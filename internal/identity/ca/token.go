package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const (
	// Audience of tokens by which a workload asks for its certificate. Istio's.
	Audience = "istio-ca"
	// TokenIssuer is who issues the tokens of a mesh without Kubernetes.
	TokenIssuer = "heddle"
	// DefaultTokenTTL is short, as whoever gets hold of a token is the workload;
	// the control plane's lab renews the file long before.
	DefaultTokenTTL = time.Hour

	maxToken      = 8 << 10
	subjectPrefix = "system:serviceaccount:"
)

// kubernetesClaim is as in Kubernetes' projected service account tokens.
type kubernetesClaim struct {
	Namespace      string `json:"namespace"`
	ServiceAccount struct {
		Name string `json:"name"`
	} `json:"serviceaccount"`
}

type claims struct {
	jwt.Claims
	Kubernetes kubernetesClaim `json:"kubernetes.io"`
}

// issuedClaims always has its audience as a list, as Kubernetes does; the library
// would write a single one as text. Both forms are read.
type issuedClaims struct {
	claims
	Audience []string `json:"aud"`
}

// Issuer makes service account tokens. It is safe for concurrent use.
type Issuer struct {
	signer jose.Signer
	public string
}

// NewIssuer loads the key at keyPath, or makes one there, and writes the public
// key set beside it for verifiers: see PublicKeyPath.
func NewIssuer(keyPath string) (*Issuer, error) {
	unlock, err := lockDir(filepath.Dir(keyPath))
	if err != nil {
		return nil, fmt.Errorf("ca: token key: %w", err)
	}
	defer unlock()
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err == nil {
			err = writeKey(keyPath, key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ca: token key: %w", err)
	}
	id, err := keyID(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("ca: token key: %w", err)
	}
	i := &Issuer{public: PublicKeyPath(keyPath)}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: &key.PublicKey, KeyID: id, Algorithm: string(jose.ES256), Use: "sig"},
	}})
	if err != nil {
		return nil, fmt.Errorf("ca: token key: %w", err)
	}
	if err := writeFile(i.public, set, 0o644); err != nil {
		return nil, fmt.Errorf("ca: token key: %w", err)
	}
	i.signer, err = jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("ca: token key: %w", err)
	}
	return i, nil
}

// PublicKeyPath returns where the key set of the issuer with its key at keyPath
// is: "token-key.pem" has "token-key.jwks.json".
func PublicKeyPath(keyPath string) string {
	return strings.TrimSuffix(keyPath, ".pem") + ".jwks.json"
}

// keyID is the key's hash, so that a verifier never takes one key for another.
func keyID(key *ecdsa.PublicKey) (string, error) {
	text, err := key.Bytes()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return base64.RawURLEncoding.EncodeToString(sum[:16]), nil
}

// PublicKeyPath returns where the public key set was written.
func (i *Issuer) PublicKeyPath() string { return i.public }

// Issue makes a token by which the service account asks for its certificate. A
// ttl of 0 is DefaultTokenTTL.
func (i *Issuer) Issue(namespace, serviceAccount string, ttl time.Duration) (string, error) {
	if err := checkAccount(namespace, serviceAccount); err != nil {
		return "", err
	}
	if ttl <= 0 {
		ttl = DefaultTokenTTL
	}
	now := time.Now()
	c := issuedClaims{Audience: []string{Audience}}
	c.Claims = jwt.Claims{
		Issuer:    TokenIssuer,
		Subject:   subjectPrefix + namespace + ":" + serviceAccount,
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now),
		Expiry:    jwt.NewNumericDate(now.Add(ttl)),
	}
	c.Kubernetes.Namespace = namespace
	c.Kubernetes.ServiceAccount.Name = serviceAccount
	token, err := jwt.Signed(i.signer).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("ca: signing a token: %w", err)
	}
	return token, nil
}

// checkAccount holds the names to what an identity may hold; a colon would also
// make the subject ambiguous.
func checkAccount(namespace, serviceAccount string) error {
	return identity.ID{TrustDomain: "td", Namespace: namespace, ServiceAccount: serviceAccount}.Validate()
}

// Verifier checks tokens of an Issuer by its public key set. It is safe for
// concurrent use.
type Verifier struct {
	path     string
	audience string

	mu sync.Mutex // guards following
	// file and keys are of the key set's last reading.
	file os.FileInfo
	keys *jose.JSONWebKeySet
}

// NewVerifier reads the key set at publicKeyPath when the first token comes, and
// again whenever the file has changed. While there is no readable key set, every
// token is refused.
func NewVerifier(publicKeyPath, audience string) (*Verifier, error) {
	if publicKeyPath == "" || audience == "" {
		return nil, errors.New("ca: verifier without key set or audience")
	}
	return &Verifier{path: publicKeyPath, audience: audience}, nil
}

// Verify returns whom the token names. It accepts the signature algorithm ES256
// and no other, keys of the key set by their id and no other, and wants issuer,
// audience, expiry and the account, the same in both claims that name it.
func (v *Verifier) Verify(token string) (namespace, serviceAccount string, err error) {
	if len(token) > maxToken {
		return "", "", fmt.Errorf("token of %d bytes is too long", len(token))
	}
	t, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return "", "", fmt.Errorf("malformed token: %w", err)
	}
	keys, err := v.keySet()
	if err != nil {
		// Callers hear of it; where our files are is none of their business.
		if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
			err = pathErr.Err
		}
		return "", "", fmt.Errorf("token can not be checked: key set: %w", err)
	}
	if len(t.Headers) != 1 {
		return "", "", errors.New("token without a single signature")
	}
	found := keys.Key(t.Headers[0].KeyID)
	if len(found) != 1 {
		return "", "", errors.New("token signed by an unknown key")
	}
	public, ok := found[0].Key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return "", "", errors.New("token signed by a key that is not for ES256")
	}
	var c claims
	if err := t.Claims(public, &c); err != nil {
		return "", "", fmt.Errorf("token signature or claims: %w", err)
	}
	// The library takes a missing time for no limit.
	if c.Expiry == nil {
		return "", "", errors.New("token without expiry")
	}
	expected := jwt.Expected{Issuer: TokenIssuer, AnyAudience: jwt.Audience{v.audience}, Time: time.Now()}
	if err := c.ValidateWithLeeway(expected, 0); err != nil {
		return "", "", fmt.Errorf("token: %w", err)
	}
	namespace, serviceAccount = c.Kubernetes.Namespace, c.Kubernetes.ServiceAccount.Name
	if err := checkAccount(namespace, serviceAccount); err != nil {
		return "", "", fmt.Errorf("token: %w", err)
	}
	if c.Subject != subjectPrefix+namespace+":"+serviceAccount {
		return "", "", errors.New("token subject is not its service account")
	}
	return namespace, serviceAccount, nil
}

// keySet returns the file's keys, read anew if it is another file than before.
// It keeps no old keys when the new ones can not be read: a key may have been
// taken away on purpose.
func (v *Verifier) keySet() (*jose.JSONWebKeySet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	info, err := os.Stat(v.path)
	if err != nil {
		return nil, err
	}
	if v.keys != nil && os.SameFile(v.file, info) && v.file.Size() == info.Size() && v.file.ModTime().Equal(info.ModTime()) {
		return v.keys, nil
	}
	v.keys = nil
	data, err := readFile(v.path)
	if err != nil {
		return nil, err
	}
	keys := new(jose.JSONWebKeySet)
	if err := json.Unmarshal(data, keys); err != nil {
		return nil, err
	}
	v.file, v.keys = info, keys
	return keys, nil
}
