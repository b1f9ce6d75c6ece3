package agent

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const keyBlock = "EC PRIVATE KEY"

// save hands m to the Keeper. A failure costs the next process a request for a
// certificate, no more.
func (a *Agent) save(m *identity.Material) {
	if a.cfg.Keep == nil {
		return
	}
	key, ok := m.Certificate.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return // not made by attempt
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err == nil {
		b := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
		for _, c := range m.Certificate.Certificate {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
		}
		err = a.cfg.Keep.Save(append(b, m.RootPEM...))
	}
	if err != nil {
		a.cfg.Log.Warn("identity not kept for a restart", "err", err)
	}
}

// takeOver returns the identity that the process before has left, or nil. It is
// checked as an answer of the authority is.
func (a *Agent) takeOver() *identity.Material {
	if a.cfg.Keep == nil {
		return nil
	}
	b, err := a.cfg.Keep.Load()
	if err == nil && len(b) == 0 {
		return nil
	}
	var m *identity.Material
	if err == nil {
		m, err = a.restore(b)
	}
	if err != nil {
		a.cfg.Log.Warn("kept identity is of no use", "err", err)
		return nil
	}
	return m
}

func (a *Agent) restore(b []byte) (*identity.Material, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != keyBlock {
		return nil, errors.New("it does not begin with a key")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	return a.accept(key, []string{string(rest)})
}
