from trust.program import main

main()
