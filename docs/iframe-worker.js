/* A page opened from the disk may start no worker: the script of the search runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), { hidden: true }))
      this.inside = frame.contentWindow
      const load = (src) => new Promise((resolve, reject) => {
        const script = Object.assign(this.inside.document.createElement("script"), { src, onload: resolve, onerror: reject })
        this.inside.document.body.appendChild(script)
      })
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inside.importScripts = async (...urls) => { for (const one of urls) await load(one) }
      this.ready = load(url)
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
  }
}
