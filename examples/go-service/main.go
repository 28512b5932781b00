// A service that hashes what it is sent.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
)

const bodyMax = 1 << 20

func hash(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	if _, err := io.Copy(h, http.MaxBytesReader(w, r.Body, bodyMax)); err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	fmt.Fprintln(w, hex.EncodeToString(h.Sum(nil)))
}

func main() {
	http.HandleFunc("/", hash)
	log.Fatal(http.ListenAndServe(":8080", nil))
}
