package inspect

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"time"
)

// secretRows adds a row for each certificate of a secret.
func secretRows(t *Table, item node, status string) {
	kind, data := "CA", item.text("secret", "validation_context", "trusted_ca", "inline_bytes")
	if item.has("secret", "tls_certificate") {
		kind, data = "Cert Chain", item.text("secret", "tls_certificate", "certificate_chain", "inline_bytes")
	}
	name := item.text("name")
	text, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		t.add(name, kind, status, "unreadable", "-", "-", "-")
		return
	}
	found := false
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		found = true
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.add(name, kind, status, "unreadable", "-", "-", "-")
			continue
		}
		now := time.Now()
		valid := now.After(c.NotBefore) && now.Before(c.NotAfter)
		t.add(name, kind, status, fmt.Sprint(valid), fmt.Sprintf("%x", c.SerialNumber),
			c.NotAfter.UTC().Format(time.RFC3339), c.NotBefore.UTC().Format(time.RFC3339))
		if kind == "Cert Chain" {
			break // the rest are the authority's
		}
	}
	if !found {
		t.add(name, kind, status, "-", "-", "-", "-")
	}
}
