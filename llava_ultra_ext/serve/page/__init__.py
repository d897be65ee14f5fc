"""The exam page: frames in memory, a chat in Gradio, and what keeps both on this machine.

store       exams in memory, bounded
asking      one question to one or two models: streams, stops, keeps the turns
heat        where a chosen frame's tokens spoke for or against it
examples    exams to try: phantoms drawn on the spot, pydicom's cines, a folder's
questions   template questions by site
layout      the Gradio page; its HTML parts are filled by page.js, with files.js and questions.js
routes      files in, as bytes; nothing of them touches the disk
guard       password, foreign hosts and sites, Gradio's doors to the disk
"""
