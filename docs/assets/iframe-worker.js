/* Browsers start no Worker from a file. The site's search runs in one, so for pages opened from a folder this puts a hidden
   frame in its place: same messages, same thread. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inner = frame.contentWindow
      this.ready = new Promise(done => { this.inner.loaded = done })
      window.addEventListener("message", event => {
        if (event.source !== this.inner) return
        const copy = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(copy)
        if (this.onmessage) this.onmessage(copy)
      })
      const page = this.inner.document
      page.open()
      page.write(`<script>
        var outer = parent
        postMessage = function (data) { outer.postMessage(data, "*") }
        importScripts = function () {
          return Promise.all(Array.from(arguments, function (url) {
            return new Promise(function (done, failed) {
              var script = document.createElement("script")
              script.src = url; script.onload = done; script.onerror = failed
              document.head.appendChild(script)
            })
          }))
        }
      </script><script src="${url}" onload="loaded()"></script>`)
      page.close()
    }
    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() { this.inner.frameElement.remove() }
  }
  window.Worker = window.IFrameWorker
}
